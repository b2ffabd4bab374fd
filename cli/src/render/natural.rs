//! Natural order of names, as Docker's lists have it: `web2` before `web10`.

use std::cmp::Ordering;

/// Compares runs of digits by their number and everything else by its bytes. Total: equal only for equal texts.
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a.as_bytes(), b.as_bytes());
    while let (Some(&l), Some(&r)) = (left.first(), right.first()) {
        if l.is_ascii_digit() && r.is_ascii_digit() {
            let (number_l, rest_l) = number(left);
            let (number_r, rest_r) = number(right);
            let by_value = (number_l.len(), number_l).cmp(&(number_r.len(), number_r));
            if by_value != Ordering::Equal {
                return by_value;
            }
            (left, right) = (rest_l, rest_r);
        } else if l == r {
            (left, right) = (&left[1..], &right[1..]);
        } else {
            return l.cmp(&r);
        }
    }
    // Names that differ by leading zeros only keep a fixed order too.
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

/// The digits at the start, without leading zeros, and what follows.
fn number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let zeros = digits.iter().take_while(|b| **b == b'0').count();
    (&digits[zeros..], rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count_as_numbers() {
        let mut names =
            ["web10", "web2", "web", "web02", "api", "web2b", "Web1", "w99999999999999999999"];
        names.sort_by(|a, b| compare(a, b));
        assert_eq!(
            names,
            ["Web1", "api", "w99999999999999999999", "web", "web02", "web2", "web2b", "web10"]
        );
    }

    #[test]
    fn the_order_is_total() {
        let names = ["a", "a0", "a00", "a1", "a01", "b", "a1b", "a01b", ""];
        for a in names {
            for b in names {
                assert_eq!(compare(a, b), compare(b, a).reverse(), "{a} {b}");
                assert_eq!(compare(a, b) == Ordering::Equal, a == b, "{a} {b}");
            }
        }
    }
}
