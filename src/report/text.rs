//! Text of the page: escaping, numbers, base64 and PNG data URIs.

use crate::report::data::Slice;

/// `text` made safe for element content and for attribute values in double quotes, HTML and XML alike.
///
/// Line feeds and tabs stay; every other control character, the characters that change the direction of
/// text and those XML forbids are shown as `\u{..}`, so that a file name can hide nothing.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}' => out.extend(c.escape_unicode()),
            c if c.is_control() => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Most characters of a file name.
const LONGEST_NAME: usize = 160;

/// A file name for the page: escaped, and cut if it is very long.
pub fn name(text: &str) -> String {
    let mut short: String = text.chars().take(LONGEST_NAME).collect();
    if short.len() < text.len() {
        short.push('\u{2026}');
    }
    escape(&short)
}

/// Whether a value can be shown at all: finite, and not so large that arithmetic on it overflows.
pub fn usable(value: f64) -> bool {
    value.abs() < 1e30
}

/// `value` with `decimals` places and a true minus sign; a dash where there is no value.
pub fn number(value: f64, decimals: usize) -> String {
    if !usable(value) {
        return "\u{2013}".to_string();
    }
    let shown = format!("{value:.decimals$}");
    match shown.strip_prefix('-') {
        Some(zero) if zero.chars().all(|c| c == '0' || c == '.') => zero.to_string(),
        Some(rest) => format!("\u{2212}{rest}"),
        None => shown,
    }
}

/// A whole number in groups of three.
pub(super) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (k, c) in digits.chars().enumerate() {
        if k > 0 && (digits.len() - k).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
}

/// A time span in the largest units that fit.
pub(super) fn duration(seconds: f64) -> String {
    if !usable(seconds) || seconds < 0.0 {
        return "\u{2013}".to_string();
    }
    let whole = seconds.round() as u64;
    match whole {
        0..120 => format!("{} s", number(seconds, if seconds < 10.0 { 1 } else { 0 })),
        120..7200 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", grouped(whole / 3600), whole % 3600 / 60),
    }
}

/// A displacement (z, y, x) in millimetres in the words of anatomy, largest part first.
pub fn direction(gap_mm: [f64; 3]) -> String {
    let words = [["superior", "inferior"], ["anterior", "posterior"], ["right", "left"]];
    let mut parts: Vec<(f64, &str)> = (0..3)
        .filter(|&a| usable(gap_mm[a]) && gap_mm[a].abs() >= 0.5)
        .map(|a| (gap_mm[a].abs(), words[a][usize::from(gap_mm[a] < 0.0)]))
        .collect();
    parts.sort_by(|a, b| b.0.total_cmp(&a.0));
    let shown: Vec<String> =
        parts.iter().map(|(mm, word)| format!("{} mm {word}", number(*mm, 0))).collect();
    if shown.is_empty() { "the same place".to_string() } else { shown.join(", ") }
}

/// Base64 with padding, RFC 4648 section 4.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |k: usize| u32::from(chunk.get(k).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for k in 0..4 {
            if k <= chunk.len() {
                out.push(char::from(ALPHABET[(word >> (18 - 6 * k) & 63) as usize]));
            } else {
                out.push('=');
            }
        }
    }
    out
}

/// The image of a slice as a PNG data URI; `None` if the pixels do not fit its size or are too many for a page.
pub(super) fn data_uri(slice: &Slice) -> Option<String> {
    png_uri(png::ColorType::Grayscale, [slice.height, slice.width], &slice.pixels)
}

/// Pixels of a grey or a colour image, of height and width `size`, as a PNG data URI; `None` as [`data_uri`].
pub(super) fn png_uri(
    colour: png::ColorType,
    [height, width]: [usize; 2],
    pixels: &[u8],
) -> Option<String> {
    const LARGEST: usize = 1024;
    let fits = (1..=LARGEST).contains(&width)
        && (1..=LARGEST).contains(&height)
        && pixels.len() == width * height * colour.samples();
    if !fits {
        return None;
    }
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width as u32, height as u32);
    encoder.set_color(colour);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header().ok()?;
    writer.write_image_data(pixels).ok()?;
    writer.finish().ok()?;
    Some(format!("data:image/png;base64,{}", base64(&file)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::data::Plane;

    #[test]
    fn base64_known_answers_of_rfc_4648() {
        let pairs = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, coded) in pairs {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn hostile_text_is_escaped() {
        assert_eq!(
            escape("<script>'\"&\u{1b}[2J\u{202e}\0\n"),
            "&lt;script&gt;&#39;&quot;&amp;\\u{1b}[2J\\u{202e}\\u{0}\n"
        );
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(number(-1.25, 1), "\u{2212}1.2");
        assert_eq!(number(-0.001, 1), "0.0");
        assert_eq!(number(f64::NAN, 1), "\u{2013}");
        assert_eq!(grouped(12_345_678), "12\u{202f}345\u{202f}678");
        assert_eq!(grouped(123), "123");
        assert_eq!(duration(5.04), "5.0 s");
        assert_eq!(duration(330.0), "5 min 30 s");
        assert_eq!(duration(7384.0), "2 h 3 min");
        assert_eq!(direction([-35.2, 0.1, 12.0]), "35 mm inferior, 12 mm right");
        assert_eq!(direction([0.0; 3]), "the same place");
    }

    #[test]
    fn a_slice_becomes_a_png_that_reads_back() {
        let pixels: Vec<u8> = (0..6).collect();
        let (width, height, pixel_mm) = (3, 2, [1.0, 1.0]);
        let mut slice =
            Slice { plane: Plane::Axial, width, height, pixel_mm, pixels, marks: vec![] };
        let uri = data_uri(&slice).unwrap();
        // The eight-byte PNG signature and the start of the header chunk.
        assert!(uri.starts_with("data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAMAAAAC"));
        slice.width = 4;
        assert_eq!(data_uri(&slice), None);
    }
}
