//! Program and arguments of an image, as OCI runtimes combine them.

use microvm_api::image::ImageConfig;

/// Entry point and arguments to run: the entry point that was named, else the image's; the arguments that were given, else
/// the image's. An entry point that was named gets none of the image's arguments, and an empty name is no entry point. The
/// result is empty if nothing says what to run.
#[must_use]
pub fn entry_point(image: &ImageConfig, named: Option<&str>, given: &[String]) -> Vec<String> {
    let (mut words, own) = match named {
        None => (image.entrypoint.clone(), &image.command[..]),
        Some("") => (Vec::new(), &[][..]),
        Some(program) => (vec![program.to_owned()], &[][..]),
    };
    words.extend_from_slice(if given.is_empty() { own } else { given });
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_point_and_arguments_are_put_together() {
        let list = |words: &str| words.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (entrypoint, command, named, given, expected) in [
            ("", "", None, "", ""),
            ("", "", None, "ls -l", "ls -l"),
            ("", "serve -p 80", None, "", "serve -p 80"),
            ("", "serve -p 80", None, "ls", "ls"),
            ("/bin/echo", "hello", None, "", "/bin/echo hello"),
            ("/bin/echo -n", "hello", None, "a b", "/bin/echo -n a b"),
            ("/bin/echo", "hello", Some("cat"), "", "cat"),
            ("/bin/echo", "hello", Some("cat"), "/etc/os-release", "cat /etc/os-release"),
            ("/bin/echo", "hello", Some(""), "ls", "ls"),
            ("/bin/echo", "hello", Some(""), "", ""),
        ] {
            let image = ImageConfig {
                entrypoint: list(entrypoint),
                command: list(command),
                ..ImageConfig::default()
            };
            assert_eq!(entry_point(&image, named, &list(given)), list(expected), "{named:?} {given}");
        }
    }
}
