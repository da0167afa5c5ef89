//! Conversion, division and formatting of numbers. All lossy casts of the program are in this file.

/// Converts a count. Exact up to 2^53, which no run reaches.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub fn real(count: u64) -> f64 {
    count as f64
}

/// Converts a length.
pub fn real_len(count: usize) -> f64 {
    real(u64::try_from(count).unwrap_or(u64::MAX))
}

/// Rounds to the nearest integer, at least 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what fits")]
pub fn whole(value: f64) -> u64 {
    value.round().clamp(0.0, 9e15) as u64
}

/// Divides; 0 if the divisor is not positive.
pub fn ratio(dividend: f64, divisor: f64) -> f64 {
    if divisor > 0.0 { dividend / divisor } else { 0.0 }
}

/// Formats a figure with three digits, and with commas between thousands.
pub fn shown(value: f64) -> String {
    if value.abs() >= 100.0 {
        return thousands(whole(value));
    }
    let digits = if value.abs() >= 10.0 { 1 } else { 2 };
    format!("{value:.digits$}")
}

/// Formats an integer with commas between thousands.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shown_with_three_digits_and_commas() {
        let all = [0.0, 0.123, 9.876, 12.34, 123.4, 1234.4, 1_234_567.0].map(shown);
        assert_eq!(all, ["0.00", "0.12", "9.88", "12.3", "123", "1,234", "1,234,567"]);
    }

    #[test]
    fn a_ratio_with_divisor_zero_is_zero() {
        assert!(ratio(5.0, 0.0).abs() < f64::EPSILON);
        assert_eq!(whole(-3.0), 0);
    }
}
