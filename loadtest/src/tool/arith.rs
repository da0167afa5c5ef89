//! Numbers as they are divided, compared and printed. The lossy conversions of the program are all
//! here.

/// A count as a divisor or a dividend. Exact up to 2^53, which no run reaches.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub fn real(count: u64) -> f64 {
    count as f64
}

/// A size as a divisor or a dividend.
pub fn real_len(count: usize) -> f64 {
    real(u64::try_from(count).unwrap_or(u64::MAX))
}

/// The nearest whole number, at least 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what fits")]
pub fn whole(value: f64) -> u64 {
    value.round().clamp(0.0, 9e15) as u64
}

/// A quotient; 0 where there is nothing to divide by.
pub fn ratio(dividend: f64, divisor: f64) -> f64 {
    if divisor > 0.0 { dividend / divisor } else { 0.0 }
}

/// A figure with three significant digits, and commas between thousands.
pub fn shown(value: f64) -> String {
    if value.abs() >= 100.0 {
        return thousands(whole(value));
    }
    let digits = if value.abs() >= 10.0 { 1 } else { 2 };
    format!("{value:.digits$}")
}

/// A whole number with commas between thousands.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
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
    fn nothing_divided_by_nothing_is_nothing() {
        assert!(ratio(5.0, 0.0).abs() < f64::EPSILON);
        assert_eq!(whole(-3.0), 0);
    }
}
