//! Images that are built with commands.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use microvm_core::{ImageBase, ImageRecipe};
use microvm_ports::storage::{Additions, ImageConfig, ImageSource};
use microvm_ports::{ImageStore, Progress};
use support::{Host, named};

#[test]
fn an_image_built_with_commands_is_the_base_with_the_recipe_over_it() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let list = |words: &str| words.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let first = ImageConfig {
            environment: [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "1".to_owned())].into(),
            user: "nobody".to_owned(),
            entrypoint: list("/bin/serve -v"),
            command: list("all"),
            ..ImageConfig::default()
        };
        let build = async |name: &str, base: &str, config: ImageConfig| {
            let base = ImageBase::Image(base.to_owned());
            let recipe = ImageRecipe {
                name: name.to_owned(),
                base,
                additions: Additions::default(),
                commands: list("true"),
                steps: Vec::new(),
                config,
                cache: true,
            };
            server.service.catalog.build_image(&recipe, Progress::ignored()).await.unwrap().config
        };
        assert_eq!(build("first", "debian-python", first.clone()).await, first);
        // What is not said stays.
        let second =
            ImageConfig { environment: [("B".to_owned(), "2".to_owned())].into(), ..ImageConfig::default() };
        let built = build("second", "first", second).await;
        assert_eq!((built.environment["A"].as_str(), built.environment["B"].as_str()), ("1", "2"));
        assert_eq!(
            (&built.user, &built.entrypoint, &built.command),
            (&first.user, &first.entrypoint, &first.command)
        );
        // Arguments of another entry point are none of this one's; new ones are.
        let third = ImageConfig { entrypoint: list("/bin/other"), ..ImageConfig::default() };
        let built = build("third", "first", third).await;
        assert_eq!((built.entrypoint, built.command), (list("/bin/other"), Vec::new()));
        let fourth = ImageConfig { command: list("some"), ..ImageConfig::default() };
        let built = build("fourth", "first", fourth).await;
        assert_eq!((built.entrypoint, built.command), (list("/bin/serve -v"), list("some")));
    });
}

#[test]
fn the_base_of_a_build_that_is_also_the_image_of_a_vm_stays() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let (images, config) = (host.storage.clone(), ImageConfig::default());
        let folder = tempfile::tempdir().unwrap();
        let source = |name: &str| {
            let path = camino::Utf8Path::from_path(folder.path()).unwrap().join(name);
            std::fs::write(&path, name).unwrap();
            ImageSource::Path { path }
        };
        let add = async |source: ImageSource| {
            images.add_image("x", &source, &[], &config, Progress::ignored()).await.unwrap()
        };
        let old = add(source("old")).await;
        let mut request = named("dev");
        request.overrides.image = Some("x".to_owned());
        server.service.vms.create(request).await.unwrap();
        // The image has no name any more, and the VM goes on needing it.
        add(source("new")).await;
        let recipe = ImageRecipe {
            name: "built".to_owned(),
            base: ImageBase::Source(source("old")),
            additions: Additions::default(),
            commands: vec!["true".to_owned()],
            steps: Vec::new(),
            config: config.clone(),
            cache: false,
        };
        server.service.catalog.build_image(&recipe, Progress::ignored()).await.unwrap();
        let kept = images.image(&old.digest).await.unwrap().info;
        assert_eq!(kept.names, Vec::<String>::new());
        // Without anybody that needs it, the base goes with the build.
        server.service.vms.delete(&"dev".parse().unwrap(), false).await.unwrap();
        server.service.catalog.build_image(&recipe, Progress::ignored()).await.unwrap();
        images.image(&old.digest).await.unwrap_err();
    });
}

fn recipe(name: &str, additions: Additions, commands: &[&str]) -> ImageRecipe {
    ImageRecipe {
        name: name.to_owned(),
        base: ImageBase::Image("debian-python".to_owned()),
        additions,
        commands: commands.iter().map(|&command| command.to_owned()).collect(),
        steps: Vec::new(),
        config: ImageConfig { user: "nobody".to_owned(), ..ImageConfig::default() },
        cache: true,
    }
}

fn packages(names: &[&str]) -> Additions {
    Additions { packages: names.iter().map(|&name| name.to_owned()).collect(), ..Additions::default() }
}

#[test]
fn an_equal_build_is_taken_from_the_cache_and_no_other() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let steps = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let build = async |recipe: ImageRecipe| {
            let heard = std::sync::Arc::clone(&steps);
            let progress = Progress::to(move |report| heard.lock().unwrap().push(report.step));
            steps.lock().unwrap().clear();
            let info = server.service.catalog.build_image(&recipe, progress).await.unwrap();
            (info, steps.lock().unwrap().iter().any(|step| step.contains("cache")))
        };
        let (first, cached) = build(recipe("one", packages(&["jq"]), &["true"])).await;
        assert!(!cached && first.config.user == "nobody");
        let (second, cached) = build(recipe("two", packages(&["jq"]), &["true"])).await;
        assert!(cached && second.digest == first.digest);
        assert_eq!(second.names, ["one", "two"]);
        assert!(!build(recipe("three", packages(&["jq"]), &["false || true"])).await.1);
        assert!(!build(recipe("three", packages(&["jq", "git"]), &["true"])).await.1);
        assert!(!build(ImageRecipe { cache: false, ..recipe("two", packages(&["jq"]), &["true"]) }).await.1);
        // Images between the steps leave no name.
        let left = host.storage.images().await.unwrap().found;
        assert!(
            left.iter().flat_map(|image| &image.names).all(|name| !name.starts_with("build-")),
            "{left:?}"
        );
    });
}

#[test]
fn packages_with_scripts_are_finished_in_a_vm_and_a_missing_file_starts_none() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let vms = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let started = || vms.load(std::sync::atomic::Ordering::Relaxed);
        let build = async |recipe: ImageRecipe| {
            let vms = std::sync::Arc::clone(&vms);
            let progress = Progress::to(move |report| {
                if report.step.starts_with("starting a VM") {
                    vms.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
            server.service.catalog.build_image(&recipe, progress).await
        };
        let info = build(recipe("plain", packages(&["jq"]), &[])).await.unwrap();
        assert_eq!((info.names, started()), (vec!["plain".to_owned()], 0));
        let mut additions = packages(&["with-scripts"]);
        additions.pip.push("requests".to_owned());
        let info = build(recipe("scripts", additions.clone(), &[])).await.unwrap();
        assert_eq!((info.config.user.as_str(), started()), ("nobody", 1));
        additions.files.push(microvm_ports::storage::RecipeFile {
            path: "/x".to_owned(),
            content: None,
            source: Some("/no/such/file".to_owned()),
            mode: None,
        });
        let refused = build(recipe("scripts", additions, &["true"])).await.unwrap_err();
        assert!(refused.to_string().contains("/no/such/file"), "{refused}");
        assert_eq!(started(), 1);
        assert_eq!(host.storage.image("scripts").await.unwrap().info.digest, info.digest);
    });
}

#[test]
fn two_builds_of_one_recipe_at_once_both_succeed() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let recipe = recipe("both", packages(&["with-scripts"]), &["true"]);
        let build = || server.service.catalog.build_image(&recipe, Progress::ignored());
        let (one, other) = tokio::join!(build(), build());
        // Each may have its own: what a VM leaves has times.
        let made = [one.unwrap().digest, other.unwrap().digest];
        let named = host.storage.image("both").await.unwrap().info;
        assert!(named.names == ["both"] && made.contains(&named.digest), "{named:?}");
        let left = host.storage.images().await.unwrap().found;
        assert!(
            left.iter().flat_map(|image| &image.names).all(|name| !name.starts_with("build-")),
            "{left:?}"
        );
    });
}

async fn are_between_steps(host: &Host) -> bool {
    let found = host.storage.images().await.unwrap().found;
    found.iter().flat_map(|image| &image.names).any(|name| name.starts_with("build-"))
}

async fn until_none_is_between_steps(host: &Host) {
    let gone = async {
        while are_between_steps(host).await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), gone).await.unwrap();
}

#[test]
fn a_build_that_is_dropped_or_cut_off_leaves_no_name() {
    let host = Host::new();
    let server = host.serve();
    let stray = format!("build-{}", microvm_types::VmId::from_parts(1, 7));
    let leave_stray = async || {
        let info = host.storage.image("debian-python").await.unwrap().info;
        host.storage.name_image(&info.digest, &stray).await.unwrap();
    };
    server.run(async {
        let catalog = &server.service.catalog;
        let started = std::sync::Arc::new(tokio::sync::Notify::new());
        let heard = std::sync::Arc::clone(&started);
        let progress = Progress::to(move |report| {
            if report.step.starts_with("starting a VM") {
                heard.notify_one();
            }
        });
        let dropped = recipe("dropped", packages(&["jq"]), &["true"]);
        tokio::select! {
            biased;
            () = started.notified() => {}
            built = catalog.build_image(&dropped, progress) => panic!("{built:?}"),
        }
        until_none_is_between_steps(&host).await;
        // The form is reserved, and what of it no build holds goes with the garbage.
        let refused = catalog.build_image(&recipe(&stray, packages(&["jq"]), &[]), Progress::ignored()).await;
        assert!(refused.unwrap_err().to_string().contains("between the steps"));
        leave_stray().await;
        catalog.collect_garbage().await.unwrap();
        assert!(!are_between_steps(&host).await);
        leave_stray().await;
    });
    drop(server);
    let server = host.serve();
    server.run(until_none_is_between_steps(&host));
}

#[test]
fn a_build_whose_files_changed_meanwhile_is_not_remembered() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        let build = async |name: &str, meanwhile: &'static str| {
            std::fs::write(&source, "1").unwrap();
            let files = vec![microvm_ports::storage::RecipeFile {
                path: "/x".to_owned(),
                content: None,
                source: Some(source.to_str().unwrap().to_owned()),
                mode: None,
            }];
            let cached = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
            let (heard, changed) = (std::sync::Arc::clone(&cached), source.clone());
            let progress = Progress::to(move |report| {
                if report.step.contains("cache") {
                    heard.store(true, std::sync::atomic::Ordering::Relaxed);
                } else {
                    std::fs::write(&changed, meanwhile).unwrap();
                }
            });
            let additions = Additions { files, ..Additions::default() };
            server.service.catalog.build_image(&recipe(name, additions, &[]), progress).await.unwrap();
            cached.load(std::sync::atomic::Ordering::Relaxed)
        };
        assert!(!build("one", "2").await);
        assert!(!build("two", "1").await);
        assert!(build("three", "1").await);
    });
}
