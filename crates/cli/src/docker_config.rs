//! Docker's `config.json`: logins at registries, which other programs read and write too.
//!
//! ```text
//! credHelpers of the registry, else credsStore ─▶ docker-credential-NAME get|store|erase
//! else auths                                   ─▶ base64 of USER:PASSWORD in the file itself
//! ```
//!
//! The file is read and written here, beside the user, and never by the server.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use camino::Utf8PathBuf;
use microvm_api::image::RegistryLogin;
use microvm_driver_images::login_server;
use rustix::fs::FlockOperation;
use serde_json::{Map, Value, json};

use crate::credential_helper::{ask, run};
use crate::error::CliError;
use crate::notice::say;
use crate::{variables, visible};

/// Largest file that is read, in bytes.
const SIZE_MAX: u64 = 4 << 20;

/// Place of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// In the file.
    File,
    /// With a helper.
    Helper,
}

/// The file.
pub(crate) struct DockerConfig {
    pub(crate) path: Utf8PathBuf,
    value: Map<String, Value>,
}

/// The login for the registry of a reference; `None` where there is none. A login that cannot be read is not used, and a warning says why:
/// most images are there for everybody.
pub(crate) async fn login_for(reference: &str) -> Option<RegistryLogin> {
    let read = async {
        let Some(config) = DockerConfig::find()? else { return Ok(None) };
        let Some(server) = config.server_of(reference) else { return Ok(None) };
        config.login(&server).await
    };
    read.await.unwrap_or_else(|error: CliError| {
        say(&format!("no login is used: {}", visible::line(&error.detail())));
        None
    })
}

impl DockerConfig {
    /// Reads `$DOCKER_CONFIG/config.json`, or that in `~/.docker`; `None` without a home. A file that is not there is empty.
    pub(crate) fn find() -> Result<Option<Self>, CliError> {
        let folder = match variables::filled("DOCKER_CONFIG")? {
            None => variables::filled("HOME")?.map(|home| Utf8PathBuf::from(home).join(".docker")),
            folder => folder.map(Utf8PathBuf::from),
        };
        folder.map(|folder| Self::read(folder.join("config.json"))).transpose()
    }

    fn read(path: Utf8PathBuf) -> Result<Self, CliError> {
        let failed = |error: &std::io::Error| CliError::file("reading", &path, error);
        let size = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { path, value: Map::new() });
            }
            Err(error) => return Err(failed(&error)),
        };
        let wrong = |why: String| CliError::invalid("docker_config_invalid", format!("{path}: {why}"));
        if size > SIZE_MAX {
            return Err(wrong("it is larger than 4 MiB".to_owned()));
        }
        let text = std::fs::read_to_string(&path).map_err(|error| failed(&error))?;
        // The error does not quote the line, which may hold a password.
        let value = serde_json::from_str(&text)
            .map_err(|error| wrong(format!("line {}: it is no JSON object", error.line())))?;
        Ok(Self { path, value })
    }

    /// The name under which logins for the registry of a reference are kept. It is always one of that very host.
    fn server_of(&self, reference: &str) -> Option<String> {
        let usual = login_server(reference)?;
        Some(self.servers().find(|server| host_of(server) == host_of(&usual)).cloned().unwrap_or(usual))
    }

    /// The same for a registry by its name.
    fn server_called(&self, registry: &str) -> String {
        self.server_of(&format!("{registry}/any")).unwrap_or_else(|| registry.to_owned())
    }

    /// Names in `auths` and `credHelpers`.
    fn servers(&self) -> impl Iterator<Item = &String> {
        let names = |field| self.value.get(field).and_then(Value::as_object).into_iter().flat_map(Map::keys);
        names("auths").chain(names("credHelpers"))
    }

    /// The program that keeps the logins of a registry.
    fn helper(&self, server: &str) -> Result<Option<String>, CliError> {
        let own = self.value.get("credHelpers").and_then(|helpers| helpers.get(server));
        let own =
            own.or_else(|| self.value.get("credHelpers").and_then(|helpers| helpers.get(host_of(server))));
        let name = own.or_else(|| self.value.get("credsStore")).and_then(Value::as_str).unwrap_or_default();
        if name.is_empty() {
            return Ok(None);
        }
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
            let why = format!("{}: `{}` is no name of a credential helper", self.path, name.escape_debug());
            return Err(CliError::invalid("docker_config_invalid", why));
        }
        Ok(Some(format!("docker-credential-{name}")))
    }

    /// The login at a registry; `None` where there is none.
    async fn login(&self, server: &str) -> Result<Option<RegistryLogin>, CliError> {
        if let Some(helper) = self.helper(server)? {
            return ask(&helper, server).await;
        }
        let Some(entry) = self.value.get("auths").and_then(|auths| auths.get(server)) else {
            return Ok(None);
        };
        let text = |field: &str| entry.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        let wrong = |why: &str| {
            CliError::invalid("docker_config_invalid", format!("{}: the login at {server} {why}", self.path))
        };
        if text("identitytoken").is_some() || text("registrytoken").is_some() {
            return Err(wrong(
                "is an identity token, which is not supported: log in with a password or an access token",
            ));
        }
        if let Some(packed) = text("auth") {
            let plain = STANDARD.decode(packed).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let (user, password) = plain
                .as_deref()
                .and_then(|plain| plain.split_once(':'))
                .ok_or_else(|| wrong("cannot be read: log in again"))?;
            // Old versions of docker filled up with zeros.
            let password = password.trim_end_matches('\0');
            return Ok(Some(RegistryLogin { user: user.to_owned(), password: password.to_owned() }));
        }
        Ok(text("username")
            .zip(text("password"))
            .map(|(user, password)| RegistryLogin { user: user.to_owned(), password: password.to_owned() }))
    }

    /// Keeps a login.
    pub(crate) async fn keep(&mut self, registry: &str, login: &RegistryLogin) -> Result<Kept, CliError> {
        let RegistryLogin { user, password } = login;
        let server = &self.server_called(registry);
        if let Some(helper) = self.helper(server)? {
            let input = json!({ "ServerURL": server, "Username": user, "Secret": password });
            run(&helper, "store", &input.to_string()).await?;
            // Empty: it says that there is a login, as docker does it.
            self.set(server, Some(json!({})))?;
            return Ok(Kept::Helper);
        }
        let packed = STANDARD.encode(format!("{user}:{password}"));
        self.set(server, Some(json!({ "auth": packed })))?;
        Ok(Kept::File)
    }

    /// Forgets the login at a registry; returns whether there was one.
    pub(crate) async fn forget(&mut self, registry: &str) -> Result<bool, CliError> {
        let server = self.server_called(registry);
        let mut known = self.value.get("auths").is_some_and(|auths| auths.get(&server).is_some());
        if let Some(helper) = self.helper(&server)? {
            known |= ask(&helper, &server).await?.is_some();
            run(&helper, "erase", &server).await?;
        }
        self.set(&server, None)?;
        Ok(known)
    }

    /// Writes the file with another entry; everything else in it stays.
    fn set(&mut self, server: &str, entry: Option<Value>) -> Result<(), CliError> {
        // What a link leads to is replaced, and not the link.
        let path = self.path.canonicalize_utf8().unwrap_or_else(|_| self.path.clone());
        let failed = |error: std::io::Error| CliError::file("writing", &path, &error);
        let folder = path.parent().unwrap_or(&path);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        // Of the folder, which stays the same file. Another login may have been kept since this one was begun.
        let alone = File::open(folder).map_err(failed)?;
        rustix::fs::flock(&alone, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        self.value = Self::read(self.path.clone())?.value;
        let auths = self.value.entry("auths").or_insert_with(|| json!({}));
        let Some(auths) = auths.as_object_mut() else {
            return Err(CliError::invalid(
                "docker_config_invalid",
                format!("{}: `auths` is no object", self.path),
            ));
        };
        match entry {
            Some(entry) => auths.insert(server.to_owned(), entry),
            None => auths.remove(server),
        };
        let new = Utf8PathBuf::from(format!("{path}.{}", std::process::id()));
        // Left by a process that had this number and was killed here.
        let _ = std::fs::remove_file(&new);
        let text = serde_json::to_string_pretty(&self.value).map_err(|error| failed(error.into()))?;
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            writeln!(file, "{text}")?;
            file.sync_all()?;
            std::fs::rename(&new, &path)
        })();
        if written.is_err() {
            // It holds passwords.
            let _ = std::fs::remove_file(&new);
        }
        written.map_err(failed)
    }
}

/// The host of a name in the file, which may be a whole address.
fn host_of(server: &str) -> &str {
    let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("docker/config.json")).unwrap();
        (folder, path)
    }

    fn login(user: &str, password: &str) -> RegistryLogin {
        RegistryLogin { user: user.to_owned(), password: password.to_owned() }
    }

    fn of(text: &str) -> DockerConfig {
        DockerConfig { path: "config.json".into(), value: serde_json::from_str(text).unwrap() }
    }

    #[tokio::test]
    async fn a_login_is_kept_for_its_user_alone_and_forgotten() {
        let (_folder, path) = folder();
        let mut config = DockerConfig::read(path.clone()).unwrap();
        assert_eq!(config.keep("registry.test:5000", &login("ann", "p:w")).await.unwrap(), Kept::File);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        // As docker writes it.
        assert!(text.contains("YW5uOnA6dw==") && !text.contains("p:w"), "{text}");
        // Everything else in the file stays.
        let mut value: Value = serde_json::from_str(&text).unwrap();
        value["detachKeys"] = "ctrl-e".into();
        std::fs::write(&path, value.to_string()).unwrap();
        let mut config = DockerConfig::read(path.clone()).unwrap();
        let server = config.server_of("registry.test:5000/a/b:1").unwrap();
        assert_eq!(config.login(&server).await.unwrap(), Some(login("ann", "p:w")));
        assert_eq!(config.login("other.test").await.unwrap(), None);
        assert!(config.forget("registry.test:5000").await.unwrap());
        assert!(!config.forget("registry.test:5000").await.unwrap());
        let left = std::fs::read_to_string(&path).unwrap();
        assert!(left.contains("ctrl-e") && !left.contains("registry.test"), "{left}");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn two_logins_at_once_are_both_kept() {
        let (_folder, path) = folder();
        let mut one = DockerConfig::read(path.clone()).unwrap();
        let mut two = DockerConfig::read(path.clone()).unwrap();
        one.keep("one.test", &login("ann", "p")).await.unwrap();
        two.keep("two.test", &login("bob", "p")).await.unwrap();
        assert!(one.forget("one.test").await.unwrap());
        let config = DockerConfig::read(path).unwrap();
        assert_eq!(config.login("two.test").await.unwrap(), Some(login("bob", "p")));
        assert_eq!(config.login("one.test").await.unwrap(), None);
    }

    #[tokio::test]
    async fn names_of_registries_are_found_in_every_form() {
        let usual = login_server("x").unwrap();
        let auths = json!({
            // Of another host, and first in order: never sent to the registry that is meant without a host.
            "https://a.a.test/v1/": { "username": "stranger", "password": "p" },
            "https://a.test": { "auth": "YTpi" },
            usual: { "username": "u", "password": "p" },
            "c.test": {},
        });
        let config = of(&json!({ "auths": auths }).to_string());
        for (reference, user) in [
            ("a.test/x", Some("a")),
            ("a.a.test/x", Some("stranger")),
            ("x:1", Some("u")),
            ("team/x", Some("u")),
            ("c.test/x", None),
            ("d.test:1/x", None),
        ] {
            let found = match config.server_of(reference) {
                Some(server) => config.login(&server).await.unwrap(),
                None => None,
            };
            assert_eq!(found.map(|login| login.user).as_deref(), user, "{reference}");
        }
        let config = of(r#"{"auths": {"https://a.a.test/v1/": {"username": "stranger", "password": "p"}}}"#);
        assert_eq!(config.login(&config.server_of("x").unwrap()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_refused_without_its_secret() {
        for (text, part) in [
            (r#"{"auths": {"a.test": {"auth": "!!"}}}"#, "cannot be read"),
            (r#"{"auths": {"a.test": {"auth": "c2VjcmV0"}}}"#, "cannot be read"),
            (r#"{"auths": {"a.test": {"identitytoken": "secret"}}}"#, "identity token"),
            (r#"{"credsStore": "../bin/sh"}"#, "no name of a credential helper"),
            (r#"{"credsStore": "of-nobody-at-all"}"#, "docker-credential-of-nobody-at-all get failed"),
        ] {
            let error = format!("{:?}", of(text).login("a.test").await.unwrap_err());
            assert!(error.contains(part) && !error.contains("secret"), "{error}");
        }
        let (_folder, path) = folder();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, r#"{"auths": {"a": {"auth": "secret"}"#).unwrap();
        let error = format!("{:?}", DockerConfig::read(path).err().unwrap());
        assert!(error.contains("config.json") && !error.contains("secret"), "{error}");
    }
}
