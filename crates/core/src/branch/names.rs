//! Names of many at once.

use microvm_types::Name;

use crate::error::ServiceError;

/// Placeholder for the number in a pattern.
pub(crate) const NUMBER: &str = "{n}";

/// Names for `count` things by a pattern, numbered from 1; `None` for each without a pattern.
pub(crate) fn names(pattern: Option<&str>, count: usize) -> Result<Vec<Option<Name>>, ServiceError> {
    let invalid = |reason: String| ServiceError::Invalid { field: "name", reason };
    let Some(pattern) = pattern else { return Ok(vec![None; count]) };
    if count > 1 && !pattern.contains(NUMBER) {
        return Err(invalid(format!(
            "`{pattern}` is one name for {count} VMs: put {NUMBER} where the number goes"
        )));
    }
    (1..=count)
        .map(|number| {
            let name = pattern.replace(NUMBER, &number.to_string());
            name.parse().map(Some).map_err(|error: microvm_types::NameError| invalid(error.to_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_numbered() {
        let texts = |pattern, count| -> Vec<String> {
            names(Some(pattern), count).unwrap().into_iter().map(|name| name.unwrap().to_string()).collect()
        };
        assert_eq!(texts("try-{n}", 3), ["try-1", "try-2", "try-3"]);
        assert_eq!(texts("copy", 1), ["copy"]);
        assert!(names(Some("copy"), 2).unwrap_err().to_string().contains("{n}"));
        assert!(names(Some("no way {n}"), 1).is_err());
        assert_eq!(names(None, 2).unwrap(), [None, None]);
    }
}
