//! Dockerfiles as people write them, and as nobody should.

use microvm_api::image::{BuildStep, ImageConfig, RunStep};
use microvm_fuzz::Fuzz;

use super::*;

/// A Python program with its requirements.
const PYTHON: &str = r#"# syntax=docker/dockerfile:1
ARG BASE=debian-python
FROM ${BASE} AS app

LABEL org.opencontainers.image.title="A web app" \
      version=1.0
ENV PYTHONUNBUFFERED=1 \
    PATH="/opt/venv/bin:$PATH"

WORKDIR /app
COPY requirements.txt ./
RUN python3 -m venv /opt/venv && \
    # no index: the wheels are in the context
    pip install --no-index \
      --find-links wheels -r requirements.txt

COPY --chown=1000:1000 . .
USER 1000
EXPOSE 8000/tcp
CMD ["python3", "-m", "app"]
"#;

fn source(text: &str) -> Source {
    Source {
        name: "Dockerfile".to_owned(),
        text: text.to_owned(),
        context: "/context".to_owned(),
        ignored: vec![".git".to_owned()],
    }
}

fn image() -> Image {
    Image {
        digest: "sha256:00".to_owned(),
        names: Vec::new(),
        file_system: String::new(),
        size: 0,
        created_at: String::new(),
        source: String::new(),
        config: ImageConfig {
            environment: map(&[("PATH", "/bin"), ("LANG", "C")]),
            ..ImageConfig::default()
        },
    }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn built(text: &str, arguments: &[(&str, &str)]) -> (AddImage, Vec<String>) {
    let read = request(&source(text), "x".to_owned(), &image(), &map(arguments));
    read.unwrap_or_else(|error| panic!("{text}: {}", error.detail()))
}

fn runs(request: &AddImage) -> Vec<&RunStep> {
    let run = |step: &'_ BuildStep| matches!(step, BuildStep::Run(_));
    let only = request.steps.iter().filter(|step| run(step));
    only.map(|step| if let BuildStep::Run(run) = step { run } else { unreachable!() }).collect()
}

#[test]
fn a_dockerfile_becomes_steps_in_its_order() {
    let (request, notes) = built(PYTHON, &[]);
    let kinds: Vec<String> = request
        .steps
        .iter()
        .map(|step| match step {
            BuildStep::Run(run) => run.title.clone(),
            BuildStep::Copy(copy) => format!("{} > {} {}", copy.title, copy.destination, copy.owner),
            BuildStep::Directory(directory) => format!("{} > {}", directory.title, directory.path),
        })
        .collect();
    assert_eq!(
        kinds,
        [
            "line 10: WORKDIR /app > /app",
            "line 11: COPY requirements.txt ./ > /app/ ",
            "line 12: RUN python3 -m venv /opt/venv &&     pip install --no-index …",
            "line 17: COPY . . > /app/ 1000:1000",
        ]
    );
    let run = runs(&request)[0];
    assert_eq!(run.command[..2], ["/bin/sh", "-c"]);
    assert_eq!(
        run.command[2],
        "python3 -m venv /opt/venv &&     pip install --no-index       --find-links wheels -r requirements.txt"
    );
    assert_eq!(run.environment, map(&[("PYTHONUNBUFFERED", "1"), ("PATH", "/opt/venv/bin:/bin")]));
    assert_eq!((&*run.user, &*run.working_directory), ("root", "/app"));
    let BuildStep::Copy(copy) = &request.steps[3] else { panic!() };
    assert_eq!(
        (&*copy.context, &copy.ignored[..], &copy.sources[..]),
        ("/context", &[".git".to_owned()][..], &[".".to_owned()][..])
    );
    assert_eq!(request.config.command, ["python3", "-m", "app"]);
    assert_eq!((&*request.config.user, &*request.config.working_directory), ("1000", "/app"));
    assert_eq!(
        request.config.labels,
        map(&[("org.opencontainers.image.title", "A web app"), ("version", "1.0")])
    );
    assert_eq!(request.source, ImageSource::Image { reference: "sha256:00".to_owned() });
    assert!(notes.len() == 1 && notes[0].contains("EXPOSE 8000/tcp"), "{notes:?}");
}

#[test]
fn the_place_of_an_instruction_decides_what_it_sees() {
    let text = "FROM a\nRUN one\nENV A=1\nUSER app:app\nWORKDIR sub\nRUN two\nWORKDIR ../other\nENV A=2 B=$A\n\
                SHELL [\"/bin/bash\", \"-ec\"]\nRUN three\nRUN [\"/bin/four\", \"$A\"]\nENTRYPOINT serve $A\n";
    let (request, _) = built(text, &[]);
    let seen: Vec<_> = runs(&request)
        .iter()
        .map(|run| (run.command.join(" "), &*run.user, &*run.working_directory, run.environment.clone()))
        .collect();
    assert_eq!(
        seen,
        [
            ("/bin/sh -c one".to_owned(), "root", "/", map(&[])),
            ("/bin/sh -c two".to_owned(), "app:app", "/sub", map(&[("A", "1")])),
            ("/bin/bash -ec three".to_owned(), "app:app", "/other", map(&[("A", "2"), ("B", "1")])),
            ("/bin/four $A".to_owned(), "app:app", "/other", map(&[("A", "2"), ("B", "1")])),
        ]
    );
    // The shell, not the builder, puts values in.
    assert_eq!(request.config.entrypoint, ["/bin/bash", "-ec", "serve $A"]);
}

#[test]
fn arguments_are_seen_from_where_they_are_declared() {
    let text = "ARG V=1\nFROM a\nRUN $V\nARG V\nARG W=w-$V X\nARG LANG=de\nRUN two\nENV W=env\nRUN three\nCOPY $V /$W/";
    let of = |arguments: &[(&str, &str)]| {
        let (request, _) = built(text, arguments);
        runs(&request).iter().map(|run| run.environment.clone()).collect::<Vec<_>>()
    };
    // LANG is a variable of the image, which wins over an argument.
    assert_eq!(of(&[]), [map(&[]), map(&[("V", "1"), ("W", "w-1")]), map(&[("V", "1"), ("W", "env")])]);
    assert_eq!(of(&[("V", "2"), ("X", "x")])[1], map(&[("V", "2"), ("W", "w-2"), ("X", "x")]));
    assert_eq!(base(&source("ARG B=x\nFROM $B:1"), &map(&[("B", "y")])).unwrap(), ("y:1".to_owned(), 2));
    let unknown = request(&source(text), "x".to_owned(), &image(), &map(&[("Y", "1")])).unwrap_err();
    assert!(unknown.detail().contains("--build-arg Y"), "{}", unknown.detail());
}

#[test]
fn what_cannot_be_done_is_refused_with_its_line_and_name() {
    for (text, line, part) in [
        ("FROM a\nRUN x\nFROM b", 3, "a second FROM"),
        ("FROM a\nVOLUME /data", 2, "VOLUME"),
        ("FROM a\nHEALTHCHECK CMD x", 2, "HEALTHCHECK"),
        ("FROM a\nSTOPSIGNAL 9", 2, "STOPSIGNAL"),
        ("FROM a\nONBUILD RUN x", 2, "ONBUILD"),
        ("FROM a\nMAINTAINER me", 2, "MAINTAINER"),
        ("FROM a\nCROSS_BUILD x", 2, "CROSS_BUILD"),
        ("FROM a\n\nRUN --mount=type=cache,target=/x y", 3, "--mount"),
        ("FROM a\nRUN --network=none y", 2, "--network"),
        ("FROM a\nCOPY --from=b /x /y", 2, "--from"),
        ("FROM a\nCOPY --link x y", 2, "--link"),
        ("FROM a\nADD --checksum=x y z", 2, "--checksum"),
        ("FROM a\nCOPY --chmod=u+x y z", 2, "--chmod=u+x"),
        ("FROM a\nADD https://example.com/x /y", 2, "https://example.com/x"),
        ("FROM a\nADD git@example.com:x.git /y", 2, "git@"),
        ("FROM a\nCOPY a b /y", 2, "slash"),
        ("FROM a\nRUN <<EOF\nx\nEOF", 2, "here-document"),
        ("FROM a\nRUN cat <<-'EOF' > /x\nx\nEOF", 2, "here-document"),
        ("FROM a\nCOPY <<EOF /x\nx\nEOF", 2, "here-document"),
        ("FROM a\nRUN echo \\\\\nRUN x", 2, "\\\\"),
        ("FROM a\nCMD ['a', 'b']", 2, "double quotes"),
        ("FROM a\nCMD []", 2, "an empty CMD"),
        ("FROM a\nENV A", 2, "no value"),
        ("FROM a\nENV A=\"x", 2, "closed"),
        ("FROM a\nENV A=${B%x}", 2, "not supported"),
        ("FROM a\nUSER a b", 2, "one user"),
        ("FROM a\nSHELL x", 2, "JSON"),
        ("FROM scratch", 1, "scratch"),
        ("FROM $NOTHING", 1, "stands for nothing"),
        ("FROM --platform=plan9/mips a", 1, "plan9/mips"),
        ("# syntax=example.com/frontend\nFROM a", 1, "example.com/frontend"),
        ("# escape=x\nFROM a", 1, "escape"),
        ("RUN x", 1, "FROM"),
        ("", 1, "FROM"),
        ("ARG A", 1, "FROM"),
    ] {
        let detail = base(&source(text), &BTreeMap::new())
            .and_then(|_| request(&source(text), "x".to_owned(), &image(), &BTreeMap::new()))
            .map_or_else(|error| error.detail(), |_| panic!("{text} is accepted"));
        assert!(detail.contains(&format!("line {line}: ")) && detail.contains(part), "{text}: {detail}");
    }
}

#[test]
fn all_that_is_not_supported_is_told_at_once_and_before_the_base_is_asked_for() {
    let text = "FROM golang AS build\nRUN --mount=type=cache,target=/x go build\nHEALTHCHECK CMD x\nFROM debian\n\
                COPY --from=build /x /y\nUSER $OF_THE_BASE\nVOLUME /data";
    let detail = base(&source(text), &BTreeMap::new()).unwrap_err().detail();
    let places: Vec<&str> = detail.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(places, [2, 3, 4, 5, 7].map(|line| format!("Dockerfile, line {line}")), "{detail}");
    // A fault that a variable of the base may mend is reported only once the base is known.
    assert!(base(&source("FROM a\nUSER $OF_THE_BASE"), &BTreeMap::new()).is_ok());
}

#[test]
fn lines_are_joined_as_builders_join_them() {
    for (text, command) in [
        ("RUN a \\\n  b", "a   b"),
        ("RUN a \\  \n\n# comment\n   # another\n  b", "a   b"),
        ("run a # not a comment", "a # not a comment"),
        ("RUN a \\\n", "a"),
        ("RUN [ -f /x ] && y", "[ -f /x ] && y"),
        ("RUN [ \"$x\" = y ]", "[ \"$x\" = y ]"),
        ("RUN echo $((1<<2)) <<<x", "echo $((1<<2)) <<<x"),
        ("RUN a\r\n", "a"),
    ] {
        let (request, _) = built(&format!("FROM a\n{text}"), &[]);
        assert_eq!(runs(&request)[0].command[2], command, "{text}");
    }
    let (request, _) = built("# escape=`\nFROM a\nRUN a `\n b\\\nRUN c", &[]);
    let commands: Vec<&str> = runs(&request).iter().map(|run| &*run.command[2]).collect();
    assert_eq!(commands, ["a  b\\", "c"]);
}

#[test]
fn an_ignore_file_of_the_dockerfile_wins_and_comments_go() {
    let folder = tempfile::tempdir().unwrap();
    let here = camino::Utf8Path::from_path(folder.path()).unwrap();
    let write = |name: &str, text: &str| std::fs::write(here.join(name), text).unwrap();
    write("Dockerfile", "\u{feff}FROM a\n");
    write("test.Dockerfile", "FROM a\n");
    write(".dockerignore", "# comment\n\n *.log \n!keep.log\n");
    let open = |name: &str| Source::open(&here.join(name), None).unwrap();
    assert_eq!(open("Dockerfile").ignored, ["*.log", "!keep.log"]);
    assert!(open("Dockerfile").text.starts_with("FROM"));
    write("test.Dockerfile.dockerignore", "other\n");
    assert_eq!(open("test.Dockerfile").ignored, ["other"]);
    assert_eq!(open("Dockerfile").context, here.as_str());
    let no_folder = Source::open(&here.join("Dockerfile"), Some(&here.join("Dockerfile"))).unwrap_err();
    assert!(no_folder.detail().contains("-t"), "{}", no_folder.detail());
    write("large", &"#".repeat(2 << 20));
    assert!(Source::open(&here.join("large"), None).unwrap_err().detail().contains("bytes"));
}

#[test]
fn any_text_of_a_dockerfile() {
    let target = Fuzz::new("dockerfiles").seed(PYTHON.as_bytes()).memory(16 << 20, 4_096);
    let target = target
        .seed(*b"# escape=`\nFROM a\nRUN [\"a\", \"\\u0041\"]\nCOPY [\"a b\", \"/\"]\nENV A=${B:-'c'} D=\"e\"")
        .seed(*b"FROM a\nRUN <<E\nx\nE\nCOPY --chown=a:b --chmod=7 * /x/\nONBUILD RUN x\nARG A=$A$A\nWORKDIR ../$A");
    target.run(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        match request(&source(&text), "x".to_owned(), &image(), &map(&[("A", "b")])) {
            Ok((request, notes)) => {
                for step in &request.steps {
                    match step {
                        BuildStep::Run(run) => assert!(!run.command.is_empty()),
                        BuildStep::Copy(copy) => assert!(copy.destination.starts_with('/')),
                        BuildStep::Directory(directory) => assert!(directory.path.starts_with('/')),
                    }
                }
                format!("{} steps, {} notes", request.steps.len(), notes.len())
            }
            Err(error) => error.detail(),
        }
    });
}
