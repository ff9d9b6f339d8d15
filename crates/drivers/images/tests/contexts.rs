//! Files of contexts put into images: what goes in, as whose, and what may not.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking and say why they skip")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;

use camino::Utf8PathBuf;
use common::{Home, extract, file};
use microvm_ports::storage::{Additions, CopyStep, DirectoryStep, ImageConfig, ImageInfo, Placement};
use microvm_ports::{ImageStore, Progress, StorageError};
use tar::Builder;

/// A base with users and a context with some files.
struct Case {
    home: Home,
    context: Utf8PathBuf,
}

impl Case {
    async fn new() -> Self {
        let home = Home::new();
        let mut tar = Builder::new(Vec::new());
        file(&mut tar, "etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:1234:77::/app:/bin/sh\n");
        file(&mut tar, "etc/group", b"root:x:0:\nstaff:x:50:\n");
        file(&mut tar, "srv/old", b"old");
        home.add_bytes("base", &tar.into_inner().unwrap()).await.unwrap();
        let context = home.path("context");
        fs::create_dir_all(context.join("src/deep")).unwrap();
        for name in ["a.txt", "b.txt", "run.sh", "src/main.c", "src/main.o", "src/deep/x"] {
            fs::write(context.join(name), name).unwrap();
        }
        fs::set_permissions(context.join("run.sh"), fs::Permissions::from_mode(0o4755)).unwrap();
        symlink("main.c", context.join("src/link")).unwrap();
        symlink("src/main.c", context.join("inner")).unwrap();
        symlink("/etc/passwd", context.join("outer")).unwrap();
        symlink("../../..", context.join("src/up")).unwrap();
        Self { home, context }
    }

    fn copy(&self, sources: &[&str], destination: &str) -> CopyStep {
        CopyStep {
            title: "line 7: COPY".to_owned(),
            context: self.context.to_string(),
            sources: sources.iter().map(|&source| source.to_owned()).collect(),
            destination: destination.to_owned(),
            ..CopyStep::default()
        }
    }

    async fn put(&self, placements: Vec<Placement>) -> Result<ImageInfo, StorageError> {
        let additions = Additions { placements, ..Additions::default() };
        self.home.storage.check_additions(&additions).await?;
        let (storage, config) = (&self.home.storage, ImageConfig::default());
        let added = storage.extend_image("x", "base", &additions, &config, Progress::ignored()).await;
        added.map(|added| added.info)
    }

    async fn refused(&self, step: CopyStep) -> String {
        let refused = self.put(vec![Placement::Copy(step)]).await.unwrap_err();
        assert!(matches!(refused, StorageError::BadInput { .. }), "{refused:?}");
        let text = refused.to_string();
        assert!(text.contains("line 7: COPY"), "{text}");
        text
    }

    /// The files of the image; none where the tool that extracts them is missing.
    async fn root(&self) -> Option<(tempfile::TempDir, PathBuf)> {
        let found = extract(&self.home.storage.image("x").await.unwrap().path)?;
        let root = found.path().join("root");
        Some((found, root))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_folders_go_where_a_dockerfile_puts_them() {
    let case = Case::new().await;
    let directory = DirectoryStep {
        title: "line 1: WORKDIR".to_owned(),
        path: "/work".to_owned(),
        owner: "app".to_owned(),
    };
    let copies = [
        case.copy(&["a.txt"], "/work"),
        case.copy(&["a.txt"], "/new/name"),
        case.copy(&["a.txt"], "/dir/"),
        case.copy(&["*.txt", "/inner"], "/many/"),
        case.copy(&["src"], "/srv"),
        CopyStep { owner: "app".to_owned(), ..case.copy(&["run.sh"], "/bin/tool") },
        CopyStep { owner: "app".to_owned(), ..case.copy(&["run.sh"], "/home/deep/tool") },
        CopyStep {
            owner: "1:staff".to_owned(),
            mode: Some("4711".to_owned()),
            ..case.copy(&["run.sh"], "/bin/set")
        },
    ];
    let mut placements = vec![Placement::Directory(directory)];
    placements.extend(copies.map(Placement::Copy));
    case.put(placements).await.unwrap();
    let Some((_held, root)) = case.root().await else { return };
    for (path, content) in [
        ("work/a.txt", "a.txt"),
        ("new/name", "a.txt"),
        ("dir/a.txt", "a.txt"),
        ("many/a.txt", "a.txt"),
        ("many/b.txt", "b.txt"),
        ("many/inner", "src/main.c"),
        ("srv/old", "old"),
        ("srv/main.c", "src/main.c"),
        ("srv/deep/x", "src/deep/x"),
    ] {
        assert_eq!(fs::read_to_string(root.join(path)).unwrap(), content, "{path}");
    }
    // Links inside of a folder stay links, also those that lead out of it: they are of the guest then.
    assert_eq!(fs::read_link(root.join("srv/link")).unwrap().to_str(), Some("main.c"));
    assert_eq!(fs::read_link(root.join("srv/up")).unwrap().to_str(), Some("../../.."));
    let metadata = |path: &str| fs::metadata(root.join(path)).unwrap();
    assert_eq!(metadata("bin/tool").mode() & 0o7777, 0o755, "a set-id bit of the host is in the image");
    if rustix::process::geteuid().is_root() {
        let owner = |path: &str| (metadata(path).uid(), metadata(path).gid());
        assert_eq!((owner("work"), owner("work/a.txt")), ((1234, 77), (0, 0)));
        assert_eq!((owner("home"), owner("home/deep")), ((1234, 77), (1234, 77)));
        assert_eq!((owner("bin/tool"), owner("bin/set")), ((1234, 77), (1, 50)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_ignored_stays_out_and_is_no_source() {
    let case = Case::new().await;
    let ignored = |lines: &[&str], step: CopyStep| CopyStep {
        ignored: lines.iter().map(|&line| line.to_owned()).collect(),
        ..step
    };
    let step = ignored(&["**/*.o", "src/deep", "outer", "src/up", "*.sh"], case.copy(&["."], "/all"));
    case.put(vec![Placement::Copy(step)]).await.unwrap();
    if let Some((_held, root)) = case.root().await {
        let has = |path: &str| root.join("all").join(path).symlink_metadata().is_ok();
        assert!(has("a.txt") && has("src/main.c") && has("src/link"));
        assert!(!has("src/main.o") && !has("src/deep") && !has("run.sh") && !has("outer"));
    }
    let step = ignored(&["src", "!src/deep"], case.copy(&["."], "/back"));
    case.put(vec![Placement::Copy(step)]).await.unwrap();
    if let Some((_held, root)) = case.root().await {
        assert!(root.join("back/src/deep/x").exists() && !root.join("back/src/main.c").exists());
    }
    let refused = case.refused(ignored(&["*.txt"], case.copy(&["a.txt"], "/x"))).await;
    assert!(refused.contains("ignore file"), "{refused}");
    // By no other name, and not as an empty folder.
    symlink("src", case.context.join("pub")).unwrap();
    for (lines, source) in [(&["src"][..], "inner"), (&["src"], "pub"), (&["src", "!a.txt"], "src")] {
        let refused = case.refused(ignored(lines, case.copy(&[source], "/x"))).await;
        assert!(refused.contains("ignore file"), "{source}: {refused}");
    }
    symlink("nowhere", case.context.join("dangling")).unwrap();
    let refused = case.refused(case.copy(&["dang*"], "/x/")).await;
    assert!(refused.contains("leads nowhere"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_the_context() {
    let case = Case::new().await;
    for source in
        ["../store", "a/../../x", "outer", "src/up/etc/passwd", "src/up", "out*", "/../../etc/passwd"]
    {
        let refused = case.refused(case.copy(&[source], "/x/")).await;
        let leaves = refused.contains("leaves the context") || refused.contains("leads out of the context");
        assert!(leaves, "{source}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_of_a_copy_are_found_before_anything_is_made() {
    let case = Case::new().await;
    for (name, start) in [("x.tgz", &b"\x1f\x8b\x08"[..]), ("x.tar", &[0; 300][..]), ("x.xz", b"\xfd7zXZ\0")]
    {
        let mut content = start.to_vec();
        if name == "x.tar" {
            content[257..262].copy_from_slice(b"ustar");
        }
        fs::write(case.context.join(name), content).unwrap();
        let step = CopyStep { refuse_archives: true, ..case.copy(&[name], "/x") };
        assert!(case.refused(step).await.contains("is an archive"), "{name}");
    }
    rustix::fs::mknodat(
        rustix::fs::CWD,
        case.context.join("pipe").as_std_path(),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let with = |change: &dyn Fn(&mut CopyStep)| {
        let mut step = case.copy(&["a.txt"], "/x");
        change(&mut step);
        step
    };
    for (step, part) in [
        (case.copy(&["none"], "/x"), "`none` is not in the context"),
        (case.copy(&["a.txt", "*.zip"], "/x/"), "`*.zip`"),
        (case.copy(&["*.txt"], "/x"), "slash"),
        (case.copy(&["[z"], "/x"), "`[z`"),
        (case.copy(&["pipe"], "/x"), "neither a file"),
        (case.copy(&["a.txt"], "x"), "absolute"),
        (with(&|step| step.mode = Some("9".to_owned())), "octal"),
        (with(&|step| step.context = "relative".to_owned()), "absolute"),
        (with(&|step| step.context += "/a.txt"), "no folder"),
        (with(&|step| step.ignored.push("../x".to_owned())), "../x"),
        (with(&|step| step.owner = "nobody-here".to_owned()), "no user `nobody-here`"),
        (with(&|step| step.owner = "app:none".to_owned()), "no group `none`"),
        (with(&|step| step.owner = "4294967295".to_owned()), "too large"),
        (with(&|step| step.destination = "/srv/old/x".to_owned()), "no directory"),
    ] {
        let refused = case.refused(step).await;
        assert!(refused.contains(part), "{refused}");
    }
    let over =
        DirectoryStep { title: "line 7: COPY".to_owned(), path: "/srv/old".to_owned(), owner: String::new() };
    let refused = case.put(vec![Placement::Directory(over)]).await.unwrap_err();
    assert!(refused.to_string().contains("no directory"), "{refused}");
    let refused = case.refused(case.copy(&["src"], "/srv/old")).await;
    assert!(refused.contains("no directory"), "{refused}");
    fs::create_dir(case.context.join("clash")).unwrap();
    fs::write(case.context.join("clash/srv"), "file").unwrap();
    let refused = case.refused(case.copy(&["clash"], "/")).await;
    assert!(refused.contains("directory at `srv`"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_build_is_over_what_goes_in() {
    let case = Case::new().await;
    let mut step = case.copy(&["src", "a.txt"], "/x/");
    let key = async |step: &CopyStep| {
        case.home.storage.build_key("text", &[], &[Placement::Copy(step.clone())]).await.unwrap()
    };
    let mut keys = vec![key(&step).await];
    fs::write(case.context.join("b.txt"), "no source").unwrap();
    assert_eq!(key(&step).await, keys[0]);
    fs::write(case.context.join("src/deep/x"), "changed").unwrap();
    keys.push(key(&step).await);
    fs::remove_file(case.context.join("src/link")).unwrap();
    keys.push(key(&step).await);
    symlink("deep/x", case.context.join("src/link")).unwrap();
    keys.push(key(&step).await);
    fs::set_permissions(case.context.join("a.txt"), fs::Permissions::from_mode(0o600)).unwrap();
    keys.push(key(&step).await);
    step.ignored.push("src/deep".to_owned());
    keys.push(key(&step).await);
    for (index, one) in keys.iter().enumerate() {
        assert!(!keys[..index].contains(one), "{index}");
    }
}
