//! Turns serde's refusal of a setting into a message for the person who wrote it.

use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use crate::config::sections::Config;
use crate::config::setting::{Setting, insert};
use crate::error::{Error, Result, escape};

/// No key's name is longer.
const WORD_CHARS_MAX: usize = 80;
const SHOWN_CHARS_MAX: usize = 320;

impl Config {
    /// The full key, such as `optim.lr`, whose name is nearest to `word`; none if nothing is near.
    pub fn nearest_key(word: &str) -> Option<String> {
        let word = word.replace('-', "_");
        let score = |key: &str| {
            let leaf = key.rsplit('.').next().unwrap_or(key);
            similarity(leaf, &word).max(similarity(key, &word))
        };
        known_keys()
            .into_iter()
            .map(|key| (score(&key), key))
            .filter(|(score, _)| *score >= 0.5)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, key)| key)
    }
}

fn similarity(a: &str, b: &str) -> f64 {
    // Long words would cost quadratic time, and no key is that long.
    let short: String = b.chars().take(WORD_CHARS_MAX).collect();
    let (a, b) = (a.to_lowercase(), short.to_lowercase());
    // A word that is part of a key's name (`batchsize` and `batch`) is as good as a small typo.
    let contained = a.len() >= 3 && b.len() >= 3 && (a.contains(&b) || b.contains(&a));
    strsim::normalized_damerau_levenshtein(&a, &b).max(if contained { 0.6 } else { 0.0 })
}

/// Gives one setting to serde, alone, and turns its refusal into a message.
pub(super) fn try_alone(setting: &Setting) -> Result<()> {
    let mut table = Table::new();
    insert(&mut table, &setting.path, setting.value.clone());
    let Err(error) = Config::deserialize(Value::Table(table)) else { return Ok(()) };
    let why = explain(error.message(), &setting.path, &setting.value);
    let key = shown(&setting.path.join("."));
    Err(Error::config(key, format!("{why}\n  {}", setting.origin)))
}

fn explain(message: &str, path: &[String], value: &Value) -> String {
    if message.starts_with("unknown field") {
        return unknown_key(message, path);
    }
    let found = shown(&value.to_string());
    if message.starts_with("unknown variant") {
        let allowed = expected_names(message);
        let word = value.as_str().unwrap_or_default();
        let hint =
            nearest(word, &allowed).map_or(String::new(), |n| format!("\n  did you mean {n}?"));
        return format!("found {found}, needs one of {}{hint}", allowed.join(", "));
    }
    match message.split_once(", expected ") {
        Some((_, expected)) => {
            let each = if value.is_array() && is_scalar(expected) { " in each place" } else { "" };
            format!("found {found}, needs {}{each}", plain(expected))
        }
        None => format!("found {found}: {}", shown(message)),
    }
}

fn is_scalar(expected: &str) -> bool {
    ["f64", "f32", "u64", "u32", "usize", "i64", "a boolean", "a string"].contains(&expected.trim())
}

/// What serde expected, in the words of a user of the file.
fn plain(expected: &str) -> String {
    match expected.trim() {
        "f64" | "f32" => "a number".into(),
        "u64" | "u32" | "usize" => "a whole number, 0 or more".into(),
        "i64" => "a whole number".into(),
        "a boolean" => "true or false".into(),
        "a string" => "text".into(),
        "a sequence" => "a list, as in [1, 2]".into(),
        "an array of length 2" => "a list of two numbers".into(),
        "an array of length 3" => "a list of three numbers, [z, y, x]".into(),
        other if other.starts_with("struct") || other == "a map" => {
            "a section, as in [section] with keys below it".into()
        }
        other => shown(other),
    }
}

fn unknown_key(message: &str, path: &[String]) -> String {
    let defaults = default_table();
    let section = path.first().map_or("", String::as_str);
    let sections: Vec<String> = defaults.keys().cloned().collect();
    let leaf = path.last().map_or("", String::as_str);
    let elsewhere = || {
        known_keys().into_iter().find(|k| k.split_once('.').is_some_and(|(_, name)| name == leaf))
    };
    let (what, takes, names, guess) = if sections.iter().any(|s| s == section) {
        let names = expected_names(message);
        let guess =
            elsewhere().or_else(|| nearest(leaf, &names).map(|name| format!("{section}.{name}")));
        ("unknown key", format!("[{section}] takes"), names, guess)
    } else {
        let guess = elsewhere().or_else(|| nearest(section, &sections).map(|s| format!("[{s}]")));
        ("unknown section", "the sections are".to_string(), sections, guess)
    };
    let hint = guess.map_or(String::new(), |g| format!("\n  did you mean {g}?"));
    format!("{what}{hint}\n  {takes} {}", names.join(", "))
}

/// The names in backquotes after "expected".
fn expected_names(message: &str) -> Vec<String> {
    let Some((_, list)) = message.rsplit_once("expected ") else { return Vec::new() };
    list.split('`').skip(1).step_by(2).map(str::to_string).collect()
}

fn nearest(word: &str, names: &[String]) -> Option<String> {
    names.iter().max_by(|a, b| similarity(a, word).total_cmp(&similarity(b, word))).cloned()
}

fn default_table() -> Table {
    Table::try_from(Config::default()).unwrap_or_default()
}

fn known_keys() -> Vec<String> {
    let mut keys = Vec::new();
    for (section, body) in default_table() {
        let Value::Table(body) = body else { continue };
        keys.extend(body.keys().map(|key| format!("{section}.{key}")));
    }
    keys
}

/// Text from outside as it may be printed: control characters escaped, one line, of bounded length.
pub(super) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    escape(Path::new(&short))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_finds_the_key_it_means() {
        for (word, key) in [
            ("batchsize", "views.batch"),
            ("learning-rate", ""),
            ("warmup-step", "optim.warmup_steps"),
            ("keep_last", "run.keep_last"),
            ("zzzzzzzz", ""),
        ] {
            assert_eq!(Config::nearest_key(word).unwrap_or_default(), key, "{word}");
        }
    }

    #[test]
    fn names_are_read_from_what_serde_says() {
        let message = "unknown field `a`, expected `b` or `c`";
        assert_eq!(expected_names(message), ["b", "c"]);
        let message = "unknown field `x, expected `y``, expected one of `b`, `c`, `d`";
        assert_eq!(expected_names(message), ["b", "c", "d"]);
        assert_eq!(expected_names("unknown field `a`, there are no fields"), Vec::<String>::new());
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(shown(&"é".repeat(400)).chars().count(), SHOWN_CHARS_MAX + 1);
        assert_eq!(shown("short"), "short");
    }
}
