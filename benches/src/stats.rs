//! Summaries of many numbers.

use serde::{Deserialize, Serialize};

/// The middle and the tail of many measurements, in their unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Half of them are at most this.
    pub p50: f64,
    /// All but one in a hundred are at most this.
    pub p99: f64,
}

/// The spread of `values`; zeros where there are none.
pub fn spread(mut values: Vec<f32>) -> Spread {
    values.sort_by(f32::total_cmp);
    let at = |part: f64| {
        let rank = (values.len() as f64 * part).ceil() as usize;
        values.get(rank.saturating_sub(1)).copied().map_or(0.0, f64::from)
    };
    Spread { p50: at(0.5), p99: at(0.99) }
}

/// The middle one; the lower of two middle ones.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_not_the_largest_of_many() {
        let spread = spread((1..=1000).rev().map(|n| n as f32).collect());
        assert_eq!(spread, Spread { p50: 500.0, p99: 990.0 });
    }

    #[test]
    fn the_median_of_three_is_the_middle_one() {
        assert_eq!(median(vec![9.0, 1.0, 4.0]), Some(4.0));
        assert_eq!(median(Vec::new()), None);
    }
}
