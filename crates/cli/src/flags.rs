//! Options of the command line for fields of requests: errors name what was typed.

use microvm_api::Problem;

/// Fields of requests and the options that set them.
const FLAGS: [(&str, &str); 19] = [
    ("vcpus", "--cpus"),
    ("cpu_percent", "--cpu-limit"),
    ("memory_mib", "--memory"),
    ("memory_max_mib", "--memory-max"),
    ("disk_mib", "--disk"),
    ("network", "--network"),
    ("environment", "--env"),
    ("shares", "--share"),
    ("volumes", "--volume"),
    ("size_mib", "--size"),
    ("labels", "--label"),
    ("metadata", "--metadata"),
    ("name", "--name"),
    ("count", "--count"),
    ("min", "--min"),
    ("max", "--max"),
    ("max_age_seconds", "--max-age"),
    ("timeout_ms", "--timeout"),
    ("limits.lifetime_left_seconds", "--lifetime"),
];

/// The detail of a problem, with the option in the place of the field that it is about.
pub(crate) fn named(problem: &Problem) -> String {
    let flag = problem.field.as_deref().and_then(|field| {
        let (_, flag) = FLAGS.iter().find(|(known, _)| *known == field)?;
        let rest = problem.detail.strip_prefix(field)?;
        Some(format!("{flag}{rest}"))
    });
    flag.unwrap_or_else(|| problem.detail.clone())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use microvm_types::ErrorKind;

    use super::*;

    #[test]
    fn a_field_that_an_option_sets_is_called_like_it() {
        let mut problem = Problem::new(ErrorKind::Invalid, "invalid_field", "vcpus: 0 is too little");
        assert_eq!(named(&problem), "vcpus: 0 is too little");
        problem.field = Some("vcpus".to_owned());
        assert_eq!(named(&problem), "--cpus: 0 is too little");
        problem.field = Some("warm_up".to_owned());
        assert_eq!(named(&problem), problem.detail);
    }

    #[test]
    fn every_option_exists() {
        fn has(command: &clap::Command, option: &str) -> bool {
            command.get_arguments().any(|argument| argument.get_long() == Some(option))
                || command.get_subcommands().any(|inner| has(inner, option))
        }
        let command = crate::arguments::Arguments::command();
        for (_, flag) in FLAGS {
            assert!(has(&command, flag.trim_start_matches('-')), "{flag}");
        }
    }
}
