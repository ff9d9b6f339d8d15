//! Credential helpers of docker: programs that keep logins, `docker-credential-NAME get|store|erase`.

use std::process::Stdio;
use std::time::Duration;

use microvm_api::image::RegistryLogin;
use microvm_types::ErrorKind;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::error::CliError;

/// Most bytes of a helper's answer.
const ANSWER_MAX: u64 = 1 << 20;
/// Time for a helper, which may ask its user.
const PATIENCE: Duration = Duration::from_mins(2);

/// Asks a helper for the login at a registry; `None` if it has none.
pub(crate) async fn ask(helper: &str, server: &str) -> Result<Option<RegistryLogin>, CliError> {
    let (ok, answer) = output(helper, "get", server).await?;
    if !ok {
        // The one answer that all helpers have in common.
        if answer.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(helper, "get", &answer));
    }
    let answer: Value =
        serde_json::from_str(&answer).map_err(|_| failed(helper, "get", "its answer is no JSON"))?;
    let text = |field: &str| answer.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (user, password) = (text("Username"), text("Secret"));
    if user == "<token>" {
        let why =
            "it has an identity token, which is not supported: log in with a password or an access token";
        return Err(failed(helper, "get", why));
    }
    if user.is_empty() {
        return Err(failed(helper, "get", "its answer has no user"));
    }
    Ok(Some(RegistryLogin { user, password }))
}

/// Has a helper do something that needs no answer.
pub(crate) async fn run(helper: &str, verb: &str, input: &str) -> Result<(), CliError> {
    let (ok, answer) = output(helper, verb, input).await?;
    if ok { Ok(()) } else { Err(failed(helper, verb, &answer)) }
}

fn failed(helper: &str, verb: &str, why: &str) -> CliError {
    let why = why.trim().chars().take(300).collect::<String>();
    CliError::new(
        ErrorKind::Unavailable,
        "credential_helper_failed",
        format!("{helper} {verb} failed: {why}"),
    )
}

/// Runs a helper; whether it succeeded, and what it printed.
async fn output(helper: &str, verb: &str, input: &str) -> Result<(bool, String), CliError> {
    let started = tokio::process::Command::new(helper)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn();
    let mut child = started.map_err(|error| failed(helper, verb, &error.to_string()))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let work = async {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A helper that reads nothing tells by its exit code what is wrong.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let read = async {
            let mut answer = Vec::new();
            if let Some(stdout) = stdout {
                stdout.take(ANSWER_MAX + 1).read_to_end(&mut answer).await?;
            }
            if answer.len() as u64 > ANSWER_MAX {
                return Err(std::io::Error::other("its answer is larger than 1 MiB"));
            }
            Ok(answer)
        };
        // Side by side: it may answer before it has read all. One whose answer is too long is killed with this.
        let ((), answer) = tokio::join!(feed, read);
        Ok::<_, std::io::Error>((answer?, child.wait().await?))
    };
    let (answer, status) = tokio::time::timeout(PATIENCE, work)
        .await
        .map_err(|_| failed(helper, verb, &format!("it did not end within {PATIENCE:?}")))?
        .map_err(|error| failed(helper, verb, &error.to_string()))?;
    Ok((status.success(), String::from_utf8_lossy(&answer).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_helper_that_answers_without_end_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let helper = folder.path().join("docker-credential-endless");
        std::fs::write(&helper, "#!/bin/sh\nexec yes\n").unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let began = std::time::Instant::now();
        let error = ask(helper.to_str().unwrap(), "a.test").await.unwrap_err();
        assert!(format!("{error:?}").contains("larger than 1 MiB"), "{error:?}");
        assert!(began.elapsed() < PATIENCE / 2);
    }
}
