//! The table that is printed.

use serde::Serialize;

use crate::bench::host::HostStamp;
use crate::bench::samples::Percentiles;
use crate::error::CliError;
use crate::output::Output;

/// What a promise says about a value and its floor.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Promise {
    /// At most so many times the floor, plus so much.
    AtMost { times_floor: f64, plus: f64 },
    /// At least so many times the floor.
    AtLeast { times_floor: f64 },
    /// Told, not promised.
    None,
}

/// One line.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    /// What was measured.
    pub(super) what: String,
    /// Unit of value and floor.
    pub(super) unit: &'static str,
    /// The floor; NaN-free: absent where there is none.
    pub(super) floor: Option<f64>,
    /// What the floor is.
    pub(super) floor_is: String,
    /// The value that the promise is about: the median where there are rounds.
    pub(super) value: f64,
    /// All percentiles, where there are rounds.
    pub(super) percentiles: Option<Percentiles>,
    /// Percentiles of the floor, where there are rounds.
    pub(super) floor_percentiles: Option<Percentiles>,
    /// What is promised.
    pub(super) promise: Promise,
}

impl Row {
    /// A row of milliseconds with a floor.
    pub(super) fn times(
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
    pub(super) fn single(
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

    /// Whether the promise is kept; `None` if there is none.
    pub(super) fn reached(&self) -> Option<bool> {
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

/// Everything one run found out.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) host: HostStamp,
    pub(super) rounds: u32,
    pub(super) rows: Vec<Row>,
}

impl Report {
    pub(super) fn all_reached(&self) -> bool {
        self.rows.iter().all(|row| row.reached() != Some(false))
    }

    pub(super) fn print(&self, output: Output) -> Result<(), CliError> {
        if !output.is_json() {
            output.line(&self.host.to_string())?;
        }
        let number = |value: f64| if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
        let rows = self
            .rows
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
            .collect::<Vec<_>>();
        output.table(
            self,
            &["WHAT", "UNIT", "FLOOR", "VALUE (P50 / P90 / P99)", "RATIO", "PROMISE", "KEPT"],
            rows,
        )
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
