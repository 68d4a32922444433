//! Reads a configuration file and merges it with `--set` settings and options.
//!
//! Each key is given to serde by itself, on top of the defaults: so whatever a section's type refuses, the
//! message can name the key, where it was set, and what it takes.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::config::explain::{shown, try_alone};
use crate::config::sections::{Config, Overrides};
use crate::config::setting::{Setting, insert};
use crate::error::{Error, Result, escape};

/// More than any hand-written configuration; keeps a wrong path from being read for minutes.
const FILE_BYTES_MAX: u64 = 1 << 20;

impl Config {
    /// The defaults, overridden by a TOML file, by `section.key=value` settings, and by options, in this order.
    ///
    /// A setting's value is TOML; a bare word is text. Returns the checked configuration and the warnings of
    /// [`Config::check`].
    ///
    /// # Errors
    /// [`Error::Config`]: an unreadable file, an unknown key, a wrong type, a value out of range. The message
    /// names the key, the line of the file or the option, and what the key takes.
    pub fn load(
        file: Option<&Path>,
        sets: &[String],
        flags: &Overrides,
    ) -> Result<(Config, Vec<String>)> {
        let mut settings = Vec::new();
        if let Some(path) = file {
            settings.extend(from_text(&read_file(path)?, path)?);
        }
        for set in sets {
            settings.push(from_set(set)?);
        }
        settings.extend(from_flags(flags)?);

        let mut merged = Table::new();
        let mut origins = BTreeMap::new();
        for setting in settings {
            try_alone(&setting)?;
            origins.insert(setting.path.join("."), setting.origin);
            insert(&mut merged, &setting.path, setting.value);
        }
        let mut config = Config::deserialize(Value::Table(merged))
            .map_err(|e| Error::config("configuration", shown(e.message())))?;
        let warnings = config.check().map_err(|e| with_origin(e, &origins))?;
        Ok((config, warnings))
    }
}

fn read_file(path: &Path) -> Result<String> {
    let fail = |why: String| Error::config(escape(path), why);
    let metadata = std::fs::metadata(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    if !metadata.is_file() {
        return Err(fail("is not a regular file\n  give a TOML file".into()));
    }
    // Read no further than the cap, whatever the size claimed.
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path)
        .and_then(|f| f.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|e| fail(format!("cannot be read: {e}")))?;
    if read as u64 > FILE_BYTES_MAX {
        let why = format!(
            "has {} bytes, a configuration has at most {FILE_BYTES_MAX}\n  is this the right file?",
            metadata.len()
        );
        return Err(fail(why));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = line_of(e.as_bytes(), at);
        fail(format!("is not UTF-8 text (line {line})\n  save it as UTF-8"))
    })?;
    if text.trim_start_matches('\u{feff}').trim().is_empty() {
        return Err(fail("is empty\n  without --config the defaults are used".into()));
    }
    Ok(text)
}

fn line_of(text: &[u8], offset: usize) -> usize {
    1 + text.iter().take(offset).filter(|b| **b == b'\n').count()
}

fn from_text(text: &str, path: &Path) -> Result<Vec<Setting>> {
    let file = escape(path);
    let at = |offset: usize| format!("{file}, line {}", line_of(text.as_bytes(), offset));
    let syntax = |e: toml::de::Error| {
        let place = e.span().map_or(file.clone(), |span| at(span.start));
        Error::config(place, format!("not valid TOML: {}", shown(e.message())))
    };
    let document = DeTable::parse(text).map_err(syntax)?;
    let values: Table = text.parse().map_err(|e: toml::de::Error| {
        let offset = e.span().map_or(0, |span| span.start);
        match key_at(document.get_ref(), offset) {
            Some(key) => Error::config(
                shown(&key),
                format!("{}\n  set in {}", value_trouble(e.message()), at(offset)),
            ),
            None => syntax(e),
        }
    })?;
    let mut settings = Vec::new();
    for (section, body) in document.get_ref() {
        let name = section.get_ref().as_ref();
        let Some(value) = values.get(name) else { continue };
        match (body.get_ref(), value) {
            (DeValue::Table(keys), Value::Table(table)) if !keys.is_empty() => {
                for (key, raw) in keys {
                    let leaf = key.get_ref().as_ref();
                    let Some(value) = table.get(leaf) else { continue };
                    let path = vec![name.to_string(), leaf.to_string()];
                    let origin = format!("set in {}", at(key.span().start));
                    refuse_underflow(&path, raw.get_ref(), &origin)?;
                    settings.push(Setting { path, value: value.clone(), origin });
                }
            }
            _ => settings.push(Setting {
                path: vec![name.to_string()],
                value: value.clone(),
                origin: format!("set in {}", at(section.span().start)),
            }),
        }
    }
    Ok(settings)
}

/// The key whose value covers `offset`, as `section.key`.
fn key_at(document: &DeTable<'_>, offset: usize) -> Option<String> {
    for (name, body) in document {
        if let DeValue::Table(keys) = body.get_ref() {
            if let Some((key, _)) = keys.iter().find(|(_, v)| v.span().contains(&offset)) {
                return Some(format!("{}.{}", name.get_ref(), key.get_ref()));
            }
        } else if body.span().contains(&offset) {
            return Some(name.get_ref().to_string());
        }
    }
    None
}

fn value_trouble(message: &str) -> String {
    if message.contains("u64") || message.contains("u128") || message.contains("i128") {
        return format!("the number is too large, needs at most {}", i64::MAX);
    }
    shown(message)
}

/// Refuses `1e-400` and the like, which would silently become 0.
fn refuse_underflow(path: &[String], raw: &DeValue<'_>, origin: &str) -> Result<()> {
    let Some(text) = raw.as_float().map(toml::de::DeFloat::as_str) else { return Ok(()) };
    let mantissa = text.split(['e', 'E']).next().unwrap_or(text);
    let is_zero = text.parse::<f64>().is_ok_and(|v| v == 0.0);
    if is_zero && mantissa.bytes().any(|b| (b'1'..=b'9').contains(&b)) {
        let why =
            format!("found {}, which is too small for a number: it would become 0", shown(text));
        return Err(Error::config(shown(&path.join(".")), format!("{why}\n  {origin}")));
    }
    Ok(())
}

fn from_set(set: &str) -> Result<Setting> {
    let usage = "use --set section.key=value, for example --set optim.lr=1e-3";
    let Some((key, text)) = set.split_once('=') else {
        return Err(Error::config(
            "--set",
            format!("found {}, which has no =\n  {usage}", shown(set)),
        ));
    };
    let (key, text) = (key.trim(), text.trim());
    let path: Vec<String> = key.split('.').map(str::to_string).collect();
    if !(2..=4).contains(&path.len()) || path.iter().any(String::is_empty) {
        let hint = Config::nearest_key(key).map(|k| format!("\n  did you mean {k}?"));
        return Err(Error::config(
            "--set",
            format!("{} is not section.key{}\n  {usage}", shown(key), hint.unwrap_or_default()),
        ));
    }
    let origin = "set by --set".to_string();
    let value = match DeValue::parse(text) {
        Ok(raw) => {
            refuse_underflow(&path, raw.get_ref(), &origin)?;
            text.parse::<Value>().map_err(|e| {
                Error::config(shown(key), format!("{}\n  {origin}", value_trouble(e.message())))
            })?
        }
        Err(e) if text.starts_with(['[', '{', '"', '\'']) => {
            let why = format!("{} is not a TOML value: {}", shown(text), shown(e.message()));
            return Err(Error::config(shown(key), format!("{why}\n  {origin}")));
        }
        Err(_) => Value::String(text.to_string()),
    };
    Ok(Setting { path, value, origin })
}

fn from_flags(flags: &Overrides) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    let mut push = |option: &str, key: &str, value: Value| {
        let path = vec!["run".to_string(), key.to_string()];
        settings.push(Setting { path, value, origin: format!("set by {option}") });
    };
    if let Some(device) = &flags.device {
        push("--device", "device", Value::String(device.clone()));
    }
    for (option, key, number) in [("--steps", "steps", flags.steps), ("--seed", "seed", flags.seed)]
    {
        if let Some(number) = number {
            let number = i64::try_from(number).map_err(|_| {
                Error::config(option, format!("found {number}, needs at most {}", i64::MAX))
            })?;
            push(option, key, Value::Integer(number));
        }
    }
    Ok(settings)
}

fn with_origin(error: Error, origins: &BTreeMap<String, String>) -> Error {
    match error {
        Error::Config { key, why } => {
            let why = match origins.get(&key) {
                Some(origin) => format!("{why}\n  {origin}"),
                None => why,
            };
            Error::Config { key, why }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(sets: &[&str]) -> Result<(Config, Vec<String>)> {
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        Config::load(None, &sets, &Overrides::default())
    }

    fn why(result: Result<(Config, Vec<String>)>) -> String {
        match result {
            Err(e @ Error::Config { .. }) => e.to_string(),
            other => panic!("{other:?}"),
        }
    }

    fn file(text: impl AsRef<[u8]>) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn load(text: impl AsRef<[u8]>) -> Result<(Config, Vec<String>)> {
        let (_dir, path) = file(text);
        Config::load(Some(&path), &[], &Overrides::default())
    }

    #[test]
    fn flags_win_over_settings_and_settings_over_the_file() {
        let (_dir, path) = file("[run]\nsteps = 300\nseed = 5\nkeep_last = 9\n");
        let sets = ["run.steps=400".to_string(), "run.seed=6".to_string()];
        let flags = Overrides { steps: Some(500), ..Default::default() };
        let (config, _) = Config::load(Some(&path), &sets, &flags).unwrap();
        assert_eq!((config.run.steps, config.run.seed, config.run.keep_last), (500, 6, 9));
        assert_eq!(config.run.validate_every, 200);
    }

    #[test]
    fn the_last_of_two_settings_wins() {
        assert_eq!(set(&["run.seed=1", "run.seed=2"]).unwrap().0.run.seed, 2);
    }

    #[test]
    fn settings_are_toml_and_bare_words_are_text() {
        let (c, _) = set(&[
            "optim.lr=5e-4",
            "views.size=[48, 48, 64]",
            "run.device=cuda:1",
            "data.normalize=ct",
            "data.cache_dir=/a b/c=d",
            "tasks.antisymmetric_gap = true",
            "data.spacing=[1,1.5,2]",
        ])
        .unwrap();
        assert_eq!(c.optim.lr, 5e-4);
        assert_eq!(c.views.size, [48, 48, 64]);
        assert_eq!(c.run.device, "cuda:1");
        assert_eq!(c.data.normalize, crate::dataset::Normalize::Ct);
        assert_eq!(c.data.cache_dir, "/a b/c=d");
        assert!(c.tasks.antisymmetric_gap);
        assert_eq!(c.data.spacing, crate::image::Spacing::Mm([1.0, 1.5, 2.0]));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_key() {
        let text = why(load("# note\n[optim]\nlr = 1e-3\nwarmup_step = 5\n"));
        assert!(text.starts_with("optim.warmup_step: unknown key"), "{text}");
        assert!(text.contains("c.toml, line 4"), "{text}");
        assert!(text.contains("did you mean optim.warmup_steps?"), "{text}");
        let text = why(set(&["run.lr=1"]));
        assert!(text.contains("did you mean optim.lr?"), "{text}");
        let text = why(load("[modl]\npreset = 'custom'\n"));
        assert!(text.contains("did you mean model.preset?") && text.contains("line 2"), "{text}");
        let text = why(load("[optm]\n"));
        assert!(text.contains("did you mean [optim]?") && text.contains("line 1"), "{text}");
        let text = why(load("steps = 5\n"));
        assert!(text.contains("did you mean run.steps?"), "{text}");
        let text = why(set(&["steps=5"]));
        assert!(text.contains("did you mean run.steps?"), "{text}");
    }

    #[test]
    fn a_wrong_type_says_what_the_key_takes() {
        for (setting, needs) in [
            ("run.steps=abc", "found \"abc\", needs a whole number"),
            ("run.steps=1e3", "needs a whole number"),
            ("run.seed=-1", "found -1, needs a whole number, 0 or more"),
            ("optim.lr=fast", "found \"fast\", needs a number"),
            ("optim.lr=NaN", "needs a number"),
            ("views.size=32", "needs a list of three numbers"),
            ("views.size=[32,32]", "needs a list of three numbers"),
            ("views.size=[32,32,-1]", "a whole number, 0 or more in each place"),
            ("model.features=8", "needs a list"),
            ("tasks.antisymmetric_gap=1", "needs true or false"),
            ("data.spacing=mediam", "\"median\", \"native\" or [z, y, x] in mm"),
            ("data.normalize=zscor", "did you mean zscore?"),
            ("views.size=[32,32", "not a TOML value"),
            ("data.cache_dir=5", "needs text"),
        ] {
            let text = why(set(&[setting]));
            assert!(text.contains(needs), "{setting}: {text}");
            assert!(text.ends_with("set by --set"), "{setting}: {text}");
        }
        let text = why(load("run = 5\n"));
        assert!(text.contains("needs a section"), "{text}");
    }

    #[test]
    fn numbers_beyond_the_types_are_refused() {
        for setting in ["run.seed=18446744073709551616", "run.seed=9223372036854775808"] {
            let text = why(set(&[setting]));
            assert!(text.contains("9223372036854775807"), "{text}");
        }
        let text = why(load("[run]\nsteps = 5\nseed = 99999999999999999999\n"));
        assert!(text.starts_with("run.seed: ") && text.contains("line 3"), "{text}");
        let text = why(set(&["optim.lr=1e-400"]));
        assert!(text.contains("too small"), "{text}");
        let text = why(load("[optim]\nlr = 1e-400\n"));
        assert!(text.contains("too small") && text.contains("line 2"), "{text}");
        assert!(set(&["optim.weight_decay=0.0e-5"]).is_ok());
        let text = why(set(&["optim.lr=1e400"]));
        assert!(text.contains("optim.lr"), "{text}");
        let flags = Overrides { seed: Some(u64::MAX), ..Default::default() };
        assert!(why(Config::load(None, &[], &flags)).starts_with("--seed"));
    }

    #[test]
    fn a_range_error_says_where_the_value_was_set() {
        let text = why(load("[views]\n\nbatch = 0\n"));
        assert!(text.contains("found 0, needs 1 to 1024") && text.contains("line 3"), "{text}");
        let flags = Overrides { steps: Some(0), ..Default::default() };
        let text = why(Config::load(None, &[], &flags));
        assert!(text.contains("set by --steps"), "{text}");
    }

    #[test]
    fn files_that_are_no_configuration_are_refused_at_once() {
        let started = std::time::Instant::now();
        let deep = format!("a = {}{}", "[".repeat(400_000), "]".repeat(400_000));
        let dotted = format!("{}a = 1", "a.".repeat(400_000));
        let tables = format!("[{}a]\nb = 1", "a.".repeat(400_000));
        let inline = "a = ".to_string() + &"{a = ".repeat(100_000);
        for (text, needs) in [
            (String::new(), "is empty"),
            (" \n\t\n".into(), "is empty"),
            ("[run\nsteps = 5".into(), "line 1: not valid TOML"),
            ("[run]\nsteps = 5\nsteps = 6\n".into(), "line 3"),
            ("x".repeat(2 << 20), "at most 1048576"),
            (deep, "not valid TOML"),
            (dotted, "not valid TOML"),
            (tables, "not valid TOML"),
            (inline, "not valid TOML"),
        ] {
            let found = why(load(&text));
            assert!(found.contains(needs), "{needs}: {found}");
            assert!(found.len() < 2000, "{}", found.len());
        }
        let found = why(load(b"[run]\nsteps = 1\n# \xff\n"));
        assert!(found.contains("not UTF-8 text (line 3)"), "{found}");
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_path_buf(), dir.path().join("absent.toml")] {
            let found = why(Config::load(Some(&path), &[], &Overrides::default()));
            assert!(found.starts_with(&escape(&path)), "{found}");
        }
        // Nine files of about a megabyte: seconds would mean quadratic work.
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    }

    #[test]
    fn text_from_outside_is_escaped() {
        for found in [
            why(set(&["run.\u{1b}[2Jx=1"])),
            why(set(&["run.steps=\u{1b}[2J"])),
            why(load("[run]\n\"\\u001b[2Jx\" = 1\n")),
        ] {
            assert!(!found.contains('\u{1b}'), "{found}");
        }
    }

    #[test]
    fn a_written_configuration_loads_as_itself() {
        let (config, _) =
            set(&["views.size=[48,48,48]", "run.steps=20", "data.spacing=native"]).unwrap();
        let (again, warnings) = load(config.to_toml().unwrap()).unwrap();
        assert_eq!(again, config);
        assert!(warnings.iter().all(|w| !w.contains("warmup")), "{warnings:?}");
    }
}
