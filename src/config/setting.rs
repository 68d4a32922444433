//! One key of the configuration as it was given.

use toml::{Table, Value};

/// One key with its value, and where it came from, for messages.
pub(super) struct Setting {
    /// Section, key, and keys within it.
    pub(super) path: Vec<String>,
    pub(super) value: Value,
    /// Such as `set in FILE, line 3`.
    pub(super) origin: String,
}

/// Puts a value at its path in a table.
pub(super) fn insert(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [last] => {
            table.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            let entry = table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new()));
            if !entry.is_table() {
                *entry = Value::Table(Table::new());
            }
            if let Value::Table(inner) = entry {
                insert(inner, rest, value);
            }
        }
    }
}
