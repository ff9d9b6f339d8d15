//! Images that are built in ordered steps, as of a Dockerfile.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod support;

use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use microvm_core::{Catalog, ImageBase, ImageRecipe, ServiceError};
use microvm_ports::storage::{Additions, ImageConfig, ImageInfo};
use microvm_ports::{ImageStore, Progress};
use microvm_types::image::{BuildStep, CopyStep, DirectoryStep, RunStep};
use support::{Host, named};

fn run(title: &str, words: &[&str]) -> BuildStep {
    let command = words.iter().map(|&word| word.to_owned()).collect();
    BuildStep::Run(RunStep { title: title.to_owned(), command, ..RunStep::default() })
}

fn copy(title: &str, context: &std::path::Path, source: &str) -> BuildStep {
    BuildStep::Copy(CopyStep {
        title: title.to_owned(),
        context: context.to_str().unwrap().to_owned(),
        sources: vec![source.to_owned()],
        destination: "/app/".to_owned(),
        ..CopyStep::default()
    })
}

fn directory(title: &str, path: &str) -> BuildStep {
    BuildStep::Directory(DirectoryStep {
        title: title.to_owned(),
        path: path.to_owned(),
        owner: String::new(),
    })
}

fn recipe(name: &str, steps: Vec<BuildStep>) -> ImageRecipe {
    ImageRecipe {
        name: name.to_owned(),
        base: ImageBase::Image("debian-python".to_owned()),
        additions: Additions::default(),
        commands: Vec::new(),
        steps,
        config: ImageConfig { user: "nobody".to_owned(), ..ImageConfig::default() },
        cache: true,
    }
}

/// Builds, and returns what was told on the way.
async fn build(catalog: &Catalog, recipe: &ImageRecipe) -> (Result<ImageInfo, ServiceError>, Vec<String>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let progress = Progress::to(move |report| heard.lock().unwrap().push(report.step));
    let built = catalog.build_image(recipe, progress).await;
    let mut told = told.lock().unwrap().clone();
    told.dedup();
    (built, told)
}

#[test]
fn steps_keep_their_order_and_neighbours_share_a_vm() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), "1").unwrap();
        let steps = vec![
            directory("one", "/app"),
            copy("two", folder.path(), "a"),
            run("three", &["true"]),
            directory("four", "/app/made"),
            run("five", &["sh", "-c", "true"]),
            copy("six", folder.path(), "a"),
            run("seven", &["true"]),
        ];
        let (built, told) = build(&server.service.catalog, &recipe("x", steps)).await;
        let info = built.unwrap();
        assert_eq!((info.config.user.as_str(), &info.names[..]), ("nobody", &["x".to_owned()][..]));
        let of_vms: Vec<&str> = told
            .iter()
            .filter(|step| {
                step.starts_with("starting")
                    || step.starts_with("command")
                    || ["four", "making up an image"].contains(&&***step)
            })
            .map(String::as_str)
            .collect();
        let made = "making up an image";
        assert_eq!(
            of_vms,
            [
                made,
                "starting a VM for the commands",
                "command 1 of 3: three",
                "four",
                "command 3 of 3: five",
                made,
                "starting a VM for the commands",
                "command 1 of 1: seven",
                made,
            ],
            "{told:?}"
        );
        let mut request = named("dev");
        request.overrides.image = Some("x".to_owned());
        server.service.vms.create(request).await.unwrap();
        let left = host.storage.images().await.unwrap().found;
        assert!(
            left.iter().flat_map(|image| &image.names).all(|name| !name.starts_with("build-")),
            "{left:?}"
        );
    });
}

#[test]
fn equal_steps_are_taken_from_the_cache_wherever_their_lines_are() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let catalog = &server.service.catalog;
        let first = recipe("one", vec![run("line 2: RUN true", &["true"])]);
        let made = build(catalog, &first).await.0.unwrap();
        let moved = recipe("two", vec![run("line 9: RUN true", &["true"])]);
        let (again, told) = build(catalog, &moved).await;
        assert_eq!(again.unwrap().digest, made.digest);
        assert!(told.iter().any(|step| step.contains("cache")), "{told:?}");
        for change in [
            |step: &mut RunStep| step.user = "app".to_owned(),
            |step: &mut RunStep| step.working_directory = "/app".to_owned(),
            |step: &mut RunStep| drop(step.environment.insert("A".to_owned(), "1".to_owned())),
        ] {
            let mut step = run("line 2: RUN true", &["true"]);
            let BuildStep::Run(inner) = &mut step else { unreachable!() };
            change(inner);
            let (_, told) = build(catalog, &recipe("three", vec![step])).await;
            assert!(!told.iter().any(|step| step.contains("cache")), "{told:?}");
        }
    });
}

#[test]
fn a_step_that_fails_is_named_and_the_name_of_the_image_stays() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let catalog = &server.service.catalog;
        let made = build(catalog, &recipe("x", vec![run("line 2: RUN true", &["true"])])).await.0.unwrap();
        let failing = vec![run("line 2: RUN true", &["true"]), run("line 3: RUN false", &["false"])];
        let refused = build(catalog, &recipe("x", failing)).await.0.unwrap_err();
        assert!(matches!(&refused, ServiceError::BuildCommand { code: 1, .. }), "{refused}");
        assert!(refused.to_string().contains("line 3: RUN false"), "{refused}");
        let missing = vec![run("line 2: RUN nothere", &["nothere"])];
        let refused = build(catalog, &recipe("x", missing)).await.0.unwrap_err();
        assert!(refused.to_string().contains("line 2: RUN nothere"), "{refused}");
        // What is wrong with a later step is found before a VM starts for an earlier one.
        let folder = tempfile::tempdir().unwrap();
        for (step, part) in [
            (copy("line 3: COPY", folder.path(), "none"), "line 3: COPY"),
            (run("line 3: RUN", &[]), "no command"),
        ] {
            let (refused, told) = build(catalog, &recipe("x", vec![run("first", &["true"]), step])).await;
            let refused = refused.unwrap_err().to_string();
            assert!(
                refused.contains(part) && !told.iter().any(|step| step.starts_with("starting")),
                "{refused}"
            );
        }
        assert_eq!(host.storage.image("x").await.unwrap().info.digest, made.digest);
    });
}

/// Builds; the most images between the steps that there were whenever one more was made, and the image.
async fn most_between(host: &Host, catalog: &Catalog, recipe: &ImageRecipe) -> (usize, ImageInfo) {
    let most = Arc::new(Mutex::new(0));
    let (storage, seen) = (host.storage.clone(), Arc::clone(&most));
    // Told before each image is made.
    let progress = Progress::to(move |_| {
        let images = storage.images().now_or_never().unwrap().unwrap().found;
        let between = images.iter().flat_map(|image| &image.names).filter(|name| name.starts_with("build-"));
        let mut most = seen.lock().unwrap();
        *most = between.count().max(*most);
    });
    let info = catalog.build_image(recipe, progress).await.unwrap();
    let most = *most.lock().unwrap();
    (most, info)
}

#[test]
fn a_build_keeps_one_image_between_its_steps() {
    let host = Host::new();
    let server = host.serve();
    server.run(async {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), "1").unwrap();
        let pair = |_| [run("RUN true", &["true"]), copy("COPY a", folder.path(), "a")];
        let steps: Vec<BuildStep> = (0..4).flat_map(pair).collect();
        let (most, info) = most_between(&host, &server.service.catalog, &recipe("x", steps.clone())).await;
        assert_eq!((most, info.names), (1, vec!["x".to_owned()]));
        // A package whose scripts run in a VM, and what is put in afterwards.
        let files = vec![serde_json::from_str(r#"{"path": "/etc/a", "content": "a"}"#).unwrap()];
        let packages = vec!["with-scripts".to_owned()];
        let additions = Additions { packages, files, ..Additions::default() };
        let with_package = ImageRecipe { additions, ..recipe("z", steps.clone()) };
        let (most, other) = most_between(&host, &server.service.catalog, &with_package).await;
        assert_eq!((most, other.names), (1, vec!["z".to_owned()]));
        // What the cache needs is there.
        let (again, told) = build(&server.service.catalog, &recipe("y", steps.clone())).await;
        assert_eq!(again.unwrap().digest, info.digest);
        assert!(told.iter().any(|step| step.contains("cache")), "{told:?}");
        // Another content of the same file is another build, also of the same name.
        std::fs::write(folder.path().join("a"), "2").unwrap();
        let (_, told) = build(&server.service.catalog, &recipe("y", steps)).await;
        assert!(!told.iter().any(|step| step.contains("cache")), "{told:?}");
    });
}
