//! The name that was probably meant where another one was written.

/// Least likeness of two names (0 to 1) of which one may be meant for the other.
const LIKENESS: f64 = 0.8;
/// Longest name that is compared, in bytes: no field is longer.
const NAME_MAX: usize = 80;

/// The one of `known` that is most like `name`, if one is like it.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |known: &str| strsim::jaro_winkler(name, known);
    let nearest = known.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(nearest) >= LIKENESS).then_some(nearest)
}

/// The refusal of a body or file, with the field or value that was probably meant if it tells of an unknown one.
///
/// Readers of JSON and YAML tell what is unknown and what is known in the words of serde and nowhere else; other texts come back as
/// they are.
#[must_use]
pub fn with_meant(refusal: String) -> String {
    match meant(&refusal) {
        Some(meant) => {
            let meant = format!(" (`{meant}` was probably meant)");
            refusal + &meant
        }
        None => refusal,
    }
}

fn meant(refusal: &str) -> Option<&str> {
    let (_, rest) =
        ["unknown field `", "unknown variant `"].iter().find_map(|words| refusal.split_once(words))?;
    let (name, known) = rest.split_once("`, expected ")?;
    if name.len() > NAME_MAX {
        return None;
    }
    nearest(name, known.split('`').skip(1).step_by(2).filter(|known| !known.is_empty()))
}

#[cfg(test)]
mod tests {
    use crate::CreateVm;

    use super::*;

    fn refused(body: &str) -> String {
        with_meant(serde_json::from_str::<CreateVm>(body).expect_err("it has a fault").to_string())
    }

    #[test]
    fn the_field_that_was_meant_is_named() {
        assert!(refused(r#"{"memry_mib":1}"#).ends_with("(`memory_mib` was probably meant)"));
        assert!(refused(r#"{"limits":{"idle_secs":1}}"#).ends_with("(`idle_seconds` was probably meant)"));
        assert!(
            refused(r#"{"overrides":{"network":"isolatd"}}"#).ends_with("(`isolated` was probably meant)")
        );
    }

    #[test]
    fn nothing_is_made_up() {
        for body in [r#"{"xyzzy":1}"#, r#"{"vcpus":"two"}"#, "{", r#"{"`, expected `":1}"#] {
            assert!(!refused(body).contains("probably"), "{}", refused(body));
        }
        let long = format!(r#"{{"{}":1}}"#, "memory_mib".repeat(100));
        assert!(!refused(&long).contains("probably"));
        assert_eq!(with_meant("unknown field `a".to_owned()), "unknown field `a");
    }
}
