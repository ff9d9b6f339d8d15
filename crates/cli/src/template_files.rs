//! Templates: those that come with the program, and the operator's own files, read again when they change.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use microvm_api::meant::with_meant;
use microvm_core::{TemplateError, TemplateSet, TemplateSource};
use microvm_types::Name;
use microvm_types::template::Template;
use rustix::fs::OFlags;

/// Templates that come with the program: file name without ending, and text.
const BUILT_IN: [(&str, &str); 2] = [
    ("linux-default", include_str!("../../../templates/linux-default.yaml")),
    ("linux-microvm", include_str!("../../../templates/linux-microvm.yaml")),
];
/// Endings of files that are templates.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];
/// Longest template file; real ones have a kilobyte.
const LENGTH_MAX: u64 = 256 << 10;
/// Most template files; more are told as one failure.
const FILES_MAX: usize = 1_000;

/// Identity of a file when it was read: name, device and inode, length, and seconds and nanoseconds of its last change.
type Stamp = Vec<(String, (u64, u64), u64, i64, i64)>;

/// `<root>/templates/*.{yaml,yml,json}` over the built-in ones of the same names.
#[derive(Debug)]
pub(crate) struct TemplateFiles {
    directory: Utf8PathBuf,
    read: Mutex<Option<(Stamp, Arc<TemplateSet>)>>,
}

impl TemplateFiles {
    pub(crate) fn new(root: &Utf8Path) -> Self {
        Self { directory: root.join("templates"), read: Mutex::new(None) }
    }

    /// The files, and how they are now.
    fn look(&self) -> anyhow::Result<Stamp> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("reading {}", self.directory)),
        };
        let mut stamp = Vec::new();
        for entry in entries {
            let name = entry.with_context(|| format!("reading {}", self.directory))?.file_name();
            let Some(name) = name.to_str().filter(|name| is_template(name)) else { continue };
            // A link is read as what it leads to; a dangling one fails when it is read.
            let found = fs::metadata(self.directory.join(name)).ok();
            let (file, length, seconds, nanoseconds) = found.map_or(((0, 0), 0, 0, 0), |found| {
                // A file put in the place of another has another inode, even if it has the same length and time.
                ((found.dev(), found.ino()), found.len(), found.mtime(), found.mtime_nsec())
            });
            stamp.push((name.to_owned(), file, length, seconds, nanoseconds));
        }
        stamp.sort();
        Ok(stamp)
    }

    fn load(&self, stamp: &Stamp) -> TemplateSet {
        let mut set = built_in();
        for (name, ..) in stamp.iter().take(FILES_MAX) {
            let path = self.directory.join(name);
            let stem = path.file_stem().unwrap_or(name);
            match read(&path).and_then(|text| parse(stem, &text)) {
                Ok(template) => {
                    set.templates.insert(template.name.to_string(), template);
                }
                Err(error) => {
                    tracing::error!(%path, error = format!("{error:#}"), "a template file cannot be used");
                    let reason = format!("{path}: {error:#}");
                    set.failed.push(TemplateError { name: stem.to_owned(), reason });
                }
            }
        }
        if stamp.len() > FILES_MAX {
            let reason = format!("{} has more than {FILES_MAX} template files", self.directory);
            set.failed.push(TemplateError { name: "…".to_owned(), reason });
        }
        set
    }

    /// Files of a template, whatever their ending.
    fn files_of(&self, name: &str) -> Vec<Utf8PathBuf> {
        let paths = ENDINGS.iter().map(|ending| self.directory.join(format!("{name}.{ending}")));
        paths.filter(|path| path.symlink_metadata().is_ok()).collect()
    }
}

fn failed(name: &str, reason: impl std::fmt::Display) -> TemplateError {
    TemplateError { name: name.to_owned(), reason: reason.to_string() }
}

impl TemplateSource for TemplateFiles {
    fn current(&self) -> Arc<TemplateSet> {
        // Held while files are read: of requests at the same time one reads them, and the others get what it read.
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = match self.look() {
            Ok(stamp) => stamp,
            Err(error) => {
                let mut set = built_in();
                set.failed.push(failed("templates", format!("{error:#}")));
                return Arc::new(set);
            }
        };
        if let Some((known, set)) = &*read
            && *known == stamp
        {
            return Arc::clone(set);
        }
        let set = Arc::new(self.load(&stamp));
        *read = Some((stamp, Arc::clone(&set)));
        set
    }

    fn check(&self, name: &str, text: &str) -> Result<Template, TemplateError> {
        if text.len() as u64 > LENGTH_MAX {
            return Err(failed(name, format!("it is longer than {LENGTH_MAX} bytes")));
        }
        let template = parse(name, text).map_err(|error| failed(name, format!("{error:#}")))?;
        if template.name.as_str() != name {
            let reason = format!("it names itself `{}`: take out `name`, or use that name", template.name);
            return Err(failed(name, reason));
        }
        Ok(template)
    }

    fn put(&self, name: &str, text: &str, replace: bool) -> Result<Template, TemplateError> {
        let _: Name = name.parse().map_err(|error| failed(name, error))?;
        let template = self.check(name, text)?;
        if !template.hooks.is_empty() {
            // Whoever may add templates over the interface need not be let run commands on the host.
            let reason =
                format!("it has hooks, which run on the host: put its file into {} by hand", self.directory);
            return Err(failed(name, reason));
        }
        let here = self.files_of(name);
        if !replace && !here.is_empty() {
            return Err(failed(name, "there is one of that name already: replace it with --replace"));
        }
        let told =
            |error: std::io::Error| failed(name, format!("it cannot be kept in {}: {error}", self.directory));
        fs::create_dir_all(&self.directory).map_err(told)?;
        let path = self.directory.join(format!("{name}.yaml"));
        let new = self.directory.join(format!(".{name}.{}.new", std::process::id()));
        // Left by a process that had this number and was killed here.
        let _ = fs::remove_file(&new);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(told)?;
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&new, &path));
        if let Err(error) = written {
            let _ = fs::remove_file(&new);
            return Err(told(error));
        }
        // One with another ending would stand beside it.
        for other in here.iter().filter(|other| **other != path) {
            fs::remove_file(other).map_err(told)?;
        }
        Ok(template)
    }

    fn remove(&self, name: &str) -> Result<bool, TemplateError> {
        let _: Name = name.parse().map_err(|error| failed(name, error))?;
        let here = self.files_of(name);
        for path in &here {
            fs::remove_file(path)
                .map_err(|error| failed(name, format!("{path} cannot be removed: {error}")))?;
        }
        Ok(!here.is_empty())
    }
}

fn is_template(name: &str) -> bool {
    !name.starts_with('.') && name.rsplit_once('.').is_some_and(|(_, ending)| ENDINGS.contains(&ending))
}

fn built_in() -> TemplateSet {
    let mut templates = BTreeMap::new();
    for (name, text) in BUILT_IN {
        let template = parse(name, text).expect("a unit test reads every built-in template");
        templates.insert(template.name.to_string(), template);
    }
    TemplateSet { templates, failed: Vec::new() }
}

/// The text of a regular file of bounded length. Nothing is waited for: a FIFO opens at once, and is refused.
fn read(path: &Utf8Path) -> anyhow::Result<String> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file: File =
        OpenOptions::new().read(true).custom_flags(flags).open(path).context("it cannot be opened")?;
    let found = file.metadata().context("it cannot be examined")?;
    anyhow::ensure!(found.is_file(), "it is not a file");
    anyhow::ensure!(found.len() <= LENGTH_MAX, "it is longer than {LENGTH_MAX} bytes");
    let mut text = String::new();
    file.take(LENGTH_MAX + 1).read_to_string(&mut text).context("it cannot be read as text")?;
    // It may have grown since it was examined.
    anyhow::ensure!(text.len() as u64 <= LENGTH_MAX, "it is longer than {LENGTH_MAX} bytes");
    Ok(text)
}

/// YAML; JSON is YAML too. A missing name is the file's.
fn parse(file: &str, text: &str) -> anyhow::Result<Template> {
    let mut value: serde_yaml_ng::Value =
        serde_yaml_ng::from_str(text).context("the template is not YAML or JSON")?;
    let fields = value.as_mapping_mut().context("the template must be a mapping of fields")?;
    if !fields.contains_key("name") {
        fields.insert("name".into(), file.into());
    }
    serde_yaml_ng::from_value(value)
        .map_err(|error| anyhow::anyhow!(with_meant(error.to_string())))
        .context("the template has a field that cannot be used")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf, TemplateFiles) {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        let files = TemplateFiles::new(&root);
        (folder, root.join("templates"), files)
    }

    fn names(set: &TemplateSet) -> Vec<&str> {
        set.templates.keys().map(String::as_str).collect()
    }

    #[test]
    fn the_built_in_ones_are_right() {
        assert_eq!(names(&built_in()), ["linux-default", "linux-microvm"]);
        // They would take an image's own away: it has its programs where its PATH says.
        for template in built_in().templates.values() {
            assert!(template.environment.is_empty(), "{} sets variables", template.name);
        }
    }

    #[test]
    fn a_wrong_field_is_named() {
        let error = parse("t", "image: x\nvcpu: 3\n").unwrap_err();
        assert!(format!("{error:#}").contains("(`vcpus` was probably meant)"), "{error:#}");
        assert!(parse("t", r#"{"image": "x", "memory_mib": 256}"#).unwrap().memory_mib == 256);
        assert!(parse("t", "- a\n- b\n").is_err());
    }

    #[test]
    fn what_cannot_be_used_is_told_and_keeps_nothing_else_from_being_used() {
        let (_guard, templates, files) = folder();
        fs::create_dir(&templates).unwrap();
        fs::write(templates.join("good.yaml"), "image: x\n").unwrap();
        fs::write(templates.join("bad.yaml"), "vcpu: [\n").unwrap();
        fs::write(templates.join("huge.json"), vec![b' '; 1 << 20]).unwrap();
        fs::write(templates.join("bytes.yml"), b"\xff\xfe").unwrap();
        fs::write(templates.join("notes.txt"), "not one").unwrap();
        fs::create_dir(templates.join("folder.yaml")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            templates.join("fifo.yaml").as_std_path(),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        std::os::unix::fs::symlink("/dev/zero", templates.join("zero.yaml")).unwrap();
        std::os::unix::fs::symlink("nowhere", templates.join("dangling.yaml")).unwrap();
        let set = files.current();
        assert_eq!(names(&set), ["good", "linux-default", "linux-microvm"]);
        let failed: Vec<&str> = set.failed.iter().map(|failed| failed.name.as_str()).collect();
        assert_eq!(failed, ["bad", "bytes", "dangling", "fifo", "folder", "huge", "zero"]);
        assert!(Arc::ptr_eq(&set, &files.current()), "it is read again although nothing has changed");
    }

    #[test]
    fn changes_are_seen_without_a_restart() {
        let (_guard, templates, files) = folder();
        assert_eq!(files.current().templates.len(), 2);
        files.put("mine", "image: x\nmemory_mib: 128\n", false).unwrap();
        assert_eq!(files.current().templates["mine"].memory_mib, 128);
        assert!(files.put("mine", "image: x\nmemory_mib: 256\n", false).is_err());
        files.put("mine", "image: x\nmemory_mib: 256\n", true).unwrap();
        assert_eq!(files.current().templates["mine"].memory_mib, 256);
        fs::write(templates.join("mine.yaml"), "image: [").unwrap();
        assert_eq!(files.current().failed.len(), 1);
        for bad in ["../mine", "a/b", "", ".", "x\n"] {
            assert!(files.put(bad, "image: x\n", true).is_err(), "{bad:?}");
            assert!(files.remove(bad).is_err(), "{bad:?}");
        }
        assert!(files.put("other", "image: x\nname: mine\n", false).is_err());
        assert!(files.remove("mine").unwrap() && !files.remove("mine").unwrap());
        assert_eq!(files.current().templates.len(), 2);
        assert_eq!(fs::read_dir(&templates).unwrap().count(), 0, "something is left");
    }

    #[test]
    fn any_text_of_a_template() {
        use microvm_fuzz::Fuzz;
        let target =
            BUILT_IN.iter().fold(Fuzz::new("yaml"), |target, (_, text)| target.seed(text.as_bytes()));
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n";
        target
            .seed(*br#"{"image": "x", "memory_mib": 256, "init": {"image": "/sbin/init"}}"#)
            .seed(bomb.as_bytes())
            .words(&[
                b"&a ",
                b"*a",
                b"!!binary ",
                b"<<: *a",
                b"? ",
                b"- ",
                b"|\n",
                b">-\n",
                b"---\n",
                b"{",
                b"[",
            ])
            .memory(16 << 20, 1_024)
            .run(|bytes| {
                let Ok(text) = std::str::from_utf8(bytes) else { return "no text".to_owned() };
                match parse("t", text) {
                    Ok(template) => {
                        let written = serde_yaml_ng::to_string(&template).unwrap();
                        assert_eq!(parse("t", &written).unwrap(), template, "{written}");
                        "fine".to_owned()
                    }
                    Err(error) => format!("{error:#}"),
                }
            });
    }
}
