//! Rows of a bench, with their floors and promises.

use serde::Serialize;

use crate::host::HostStamp;
use crate::samples::Percentiles;

/// A promise about a value and its floor.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// At most `times_floor` times the floor, plus `plus` units.
    AtMost {
        /// Factor of the floor.
        times_floor: f64,
        /// Allowance in the unit of the row.
        plus: f64,
    },
    /// At least `times_floor` times the floor.
    AtLeast {
        /// Factor of the floor.
        times_floor: f64,
    },
    /// Measured, not promised.
    None,
}

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Name of the measurement.
    pub what: String,
    /// Unit of value and floor.
    pub unit: &'static str,
    /// The floor; absent where there is none, never NaN.
    pub floor: Option<f64>,
    /// Name of the floor.
    pub floor_is: String,
    /// The value that the promise is about: the median where there are rounds.
    pub value: f64,
    /// All percentiles, where there are rounds.
    pub percentiles: Option<Percentiles>,
    /// Percentiles of the floor, where there are rounds.
    pub floor_percentiles: Option<Percentiles>,
    /// The promise.
    pub promise: Promise,
}

impl Row {
    /// A row of milliseconds with a floor.
    pub(crate) fn times(
        what: impl Into<String>,
        floor_is: impl Into<String>,
        floor: Percentiles,
        value: Percentiles,
        promise: Promise,
    ) -> Self {
        Self {
            what: what.into(),
            unit: "ms",
            floor: Some(floor.p50),
            floor_is: floor_is.into(),
            value: value.p50,
            percentiles: Some(value),
            floor_percentiles: Some(floor),
            promise,
        }
    }

    /// A row of one value.
    pub(crate) fn single(
        what: impl Into<String>,
        unit: &'static str,
        floor: Option<(f64, &str)>,
        value: f64,
        promise: Promise,
    ) -> Self {
        Self {
            what: what.into(),
            unit,
            floor: floor.map(|(floor, _)| floor),
            floor_is: floor.map_or_else(String::new, |(_, is)| is.to_owned()),
            value,
            percentiles: None,
            floor_percentiles: None,
            promise,
        }
    }

    /// Returns true if the promise is kept; `None` if there is none.
    #[must_use]
    pub fn reached(&self) -> Option<bool> {
        let floor = self.floor.unwrap_or(0.0);
        match self.promise {
            Promise::AtMost { times_floor, plus } => Some(self.value <= times_floor * floor + plus),
            Promise::AtLeast { times_floor } => Some(self.value >= times_floor * floor),
            Promise::None => None,
        }
    }

    fn promise_text(&self) -> String {
        match self.promise {
            Promise::AtMost { times_floor, plus } if self.floor.is_none() || times_floor == 0.0 => {
                format!("≤ {plus} {}", self.unit)
            }
            Promise::AtMost { times_floor, plus: 0.0 } => format!("≤ {times_floor} ×"),
            Promise::AtMost { times_floor, plus } => format!("≤ {times_floor} × + {plus} {}", self.unit),
            Promise::AtLeast { times_floor } => format!("≥ {times_floor} ×"),
            Promise::None => String::new(),
        }
    }
}

/// Results of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The host.
    pub host: HostStamp,
    /// Rounds measured of boots and transfers.
    pub rounds: u32,
    /// The measurements.
    pub rows: Vec<Row>,
}

impl Report {
    /// Titles of the columns.
    pub const HEADER: [&str; 7] =
        ["WHAT", "UNIT", "FLOOR", "VALUE (P50 / P90 / P99)", "RATIO", "PROMISE", "KEPT"];

    /// Returns true if every promise is kept.
    #[must_use]
    pub fn all_reached(&self) -> bool {
        self.rows.iter().all(|row| row.reached() != Some(false))
    }

    /// Cells of the table of all rows, in the order of [`Self::HEADER`].
    #[must_use]
    pub fn cells(&self) -> Vec<Vec<String>> {
        let number = |value: f64| if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
        self.rows
            .iter()
            .map(|row| {
                let spread = row.percentiles.map_or_else(String::new, |found| {
                    format!("{} / {} / {}", number(found.p50), number(found.p90), number(found.p99))
                });
                vec![
                    row.what.clone(),
                    row.unit.to_owned(),
                    row.floor.map_or_else(String::new, number),
                    if spread.is_empty() { number(row.value) } else { spread },
                    row.floor.map_or_else(String::new, |floor| format!("{:.2}", row.value / floor)),
                    row.promise_text(),
                    match row.reached() {
                        Some(true) => "yes".to_owned(),
                        Some(false) => "NO".to_owned(),
                        None => String::new(),
                    },
                ]
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_judged_against_the_floor() {
        let row = |value, promise| Row::single("x", "ms", Some((10.0, "")), value, promise).reached();
        assert_eq!(row(12.0, Promise::AtMost { times_floor: 1.15, plus: 1.0 }), Some(true));
        assert_eq!(row(13.0, Promise::AtMost { times_floor: 1.15, plus: 1.0 }), Some(false));
        assert_eq!(row(7.0, Promise::AtLeast { times_floor: 0.7 }), Some(true));
        assert_eq!(row(6.9, Promise::AtLeast { times_floor: 0.7 }), Some(false));
        assert_eq!(row(1.0, Promise::None), None);
        let absolute = Row::single("x", "MiB", None, 41.0, Promise::AtMost { times_floor: 0.0, plus: 40.0 });
        assert_eq!(absolute.reached(), Some(false));
    }
}
