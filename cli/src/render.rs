//! How answers are shown: Docker's tables, filters, sizes and times, and Go-style templates.
//!
//! Knows nothing of managers or nodes; it turns [`datum::Datum`] into text. Its invariant: every control
//! character that came from outside is shown as a blank, so that no name can drive the terminal.

pub(crate) mod datum;
pub(crate) mod filter;
pub(crate) mod inspect;
pub(crate) mod listing;
pub(crate) mod natural;
pub(crate) mod size;
pub(crate) mod table;
pub(crate) mod template;
pub(crate) mod time;

/// `text` with every control character replaced by a blank.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
