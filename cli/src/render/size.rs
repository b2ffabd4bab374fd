//! Numbers of bytes: shown as Docker shows them, read as its `--memory` does.

/// Bytes with at most four digits and a decimal unit: `512kB`, `1.074GB`.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut unit = 0;
    // Four digits are asked for; 52 bits of mantissa are plenty.
    let mut size = bytes as f64;
    while size >= 1000.0 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    let decimals = match size {
        s if s < 10.0 => 3,
        s if s < 100.0 => 2,
        _ => 1,
    };
    let text = format!("{size:.decimals$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{}{}", if text.is_empty() { "0" } else { text }, UNITS[unit])
}

/// Reads `1073741824`, `512m`, `1GiB` (1024-based) or `1GB` (1000-based).
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let error = || format!("{text:?} is no size; write for example 1073741824, 512MiB or 1GiB");
    let number: u64 = digits.parse().map_err(|_| error())?;
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        "t" | "ti" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(error()),
    };
    number.checked_mul(factor).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_four_digits_at_most() {
        for (bytes, text) in [
            (0, "0B"),
            (1, "1B"),
            (100, "100B"),
            (999, "999B"),
            (1_000, "1kB"),
            (1_024, "1.024kB"),
            (512_000, "512kB"),
            (123_456, "123.5kB"),
            (1 << 30, "1.074GB"),
            (u64::MAX, "18.45EB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn sizes_are_read_with_units() {
        assert_eq!(parse("1073741824"), Ok(1 << 30));
        assert_eq!(parse("1GiB"), Ok(1 << 30));
        assert_eq!(parse("1g"), Ok(1 << 30));
        assert_eq!(parse("1GB"), Ok(1_000_000_000));
        for text in ["", "GiB", "-1", "1.5GiB", "1 parsec", "99999999999999999999", "99999999999t"]
        {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
