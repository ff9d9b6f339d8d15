//! A fake VMM: a program that runs in the cage in QEMU's place and tries what a VMM would try that its guest has taken over.
//!
//! This one program is the test, the launcher of the supervisor, and the fake VMM, told apart by the first argument.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    unsafe_code,
    reason = "a test, and raw system calls are what it is about"
)]

use std::collections::BTreeMap;
use std::io::{Error, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use microvm_confinement::{
    CageSpec, FileOwner, Folder, Layer, Mount, MountAccess, OpenFile, ProcessIdentity, SUPERVISOR_COMMAND,
    end_strays, layers, spawn, supervise,
};

const FAKE: &str = "fake-vmm";
const WAITING: &str = "fake-vmm-that-waits";
const SHARING: &str = "fake-vmm-that-shares";
const NAME: &str = "a_taken_over_vmm_is_held";
/// Paths in the cage of its memory base, and of a folder of its user's.
const MEMORY: &str = "/memory";
const FOLDER: &str = "/share";
/// Numbers of the descriptors that it is handed.
const SHARED: i32 = 20;
const OWN: i32 = 21;
const CONSOLE: i32 = 22;
/// Largest file it may write.
const LARGEST: u64 = 1 << 20;
/// Mode of `fallocate` that discards.
const PUNCH_HOLE: libc::c_int = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some(SUPERVISOR_COMMAND) => return supervise(),
        Some(FAKE) => {
            be_hostile(&arguments[2]);
            return std::process::ExitCode::SUCCESS;
        }
        Some(WAITING) => {
            // Until it is killed; not for ever if the test fails.
            std::thread::sleep(Duration::from_secs(60));
            return std::process::ExitCode::SUCCESS;
        }
        Some(SHARING) => {
            be_hostile_in_a_folder();
            return std::process::ExitCode::SUCCESS;
        }
        // The two questions of a test runner; there is one test, and none is ignored.
        _ if arguments.iter().any(|argument| argument == "--list") => {
            if !arguments.iter().any(|argument| argument == "--ignored") {
                println!("{NAME}: test");
            }
            return std::process::ExitCode::SUCCESS;
        }
        _ => {}
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(hold());
    std::process::ExitCode::SUCCESS
}

/// Tells how an attempt ended: 0 or more is success, otherwise the error number decides.
fn tell(what: &str, result: i64) {
    let outcome = if result < 0 { Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 };
    let _ = writeln!(std::io::stderr(), "{what}={outcome}");
}

macro_rules! attempt {
    ($what:literal, $number:expr $(, $argument:expr)*) => {
        // SAFETY: the arguments are numbers, or pointers to what lives longer than the call.
        tell($what, unsafe { libc::syscall($number $(, $argument)*) })
    };
}

fn be_hostile(secret: &str) {
    let null = std::ptr::null::<u8>();
    // The keyrings of whoever started the server: the session's is -3.
    attempt!("keyctl", libc::SYS_keyctl, 0, -3, 0);
    attempt!("add_key", libc::SYS_add_key, c"user".as_ptr(), c"x".as_ptr(), c"y".as_ptr(), 1, -3);
    attempt!("request_key", libc::SYS_request_key, c"user".as_ptr(), c"x".as_ptr(), null, 0);
    attempt!("vsock", libc::SYS_socket, libc::AF_VSOCK, libc::SOCK_STREAM, 0);
    attempt!("inet", libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0);
    attempt!("netlink", libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0);
    attempt!("ptrace", libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0);
    attempt!("process_vm_readv", libc::SYS_process_vm_readv, 1, null, 0, null, 0, 0);
    attempt!("bpf", libc::SYS_bpf, 0, null, 0);
    attempt!("io_uring", libc::SYS_io_uring_setup, 1, null);
    attempt!("unshare", libc::SYS_unshare, libc::CLONE_NEWUSER);
    attempt!("mount", libc::SYS_mount, c"none".as_ptr(), c"/".as_ptr(), c"tmpfs".as_ptr(), 0, null);
    attempt!("clone3", libc::SYS_clone3, null, 0);
    attempt!("process", libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
    attempt!("pidfd_open", libc::SYS_pidfd_open, 1, 0);
    // Files that it was handed, and that others share.
    attempt!("fchmod", libc::SYS_fchmod, SHARED, 0o666);
    attempt!("fchown", libc::SYS_fchown, SHARED, -1, -1);
    attempt!("fsetxattr", libc::SYS_fsetxattr, SHARED, c"user.x".as_ptr(), c"y".as_ptr(), 1, 0);
    attempt!("times", libc::SYS_utimensat, SHARED, null, null, 0);
    attempt!("write to shared", libc::SYS_write, SHARED, c"x".as_ptr(), 1);
    attempt!("truncate shared", libc::SYS_ftruncate, SHARED, 0);
    // Files of other VMs and of the host.
    let secret = std::ffi::CString::new(secret).unwrap();
    attempt!("another's file", libc::SYS_openat, libc::AT_FDCWD, secret.as_ptr(), libc::O_RDONLY);
    attempt!("password file", libc::SYS_openat, libc::AT_FDCWD, c"/etc/passwd".as_ptr(), libc::O_RDONLY);
    attempt!("processes", libc::SYS_openat, libc::AT_FDCWD, c"/proc/1/environ".as_ptr(), libc::O_RDONLY);
    attempt!(
        "new file",
        libc::SYS_openat,
        libc::AT_FDCWD,
        c"/x".as_ptr(),
        libc::O_CREAT | libc::O_WRONLY,
        0o600
    );
    // Its own file, up to its size.
    attempt!("own write", libc::SYS_pwrite64, OWN, c"x".as_ptr(), 1, LARGEST - 1);
    attempt!("huge write", libc::SYS_pwrite64, OWN, c"x".as_ptr(), 1, LARGEST);
    attempt!("huge file", libc::SYS_ftruncate, OWN, 1_i64 << 40);
    // Calls that every VMM needs still work.
    attempt!("unix", libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0);
    tell("thread", std::thread::spawn(|| 1).join().unwrap_or(-1));
}

/// It may change modes and times, of what lies in the folder; it runs as the user to whom all of this belongs.
fn be_hostile_in_a_folder() {
    let null = std::ptr::null::<u8>();
    attempt!("fchmod disk", libc::SYS_fchmod, SHARED, 0o666);
    attempt!("chmod disk", libc::SYS_chmod, c"/proc/self/fd/20".as_ptr(), 0o666);
    attempt!("times of disk", libc::SYS_utimensat, SHARED, null, null, 0);
    let memory = std::ffi::CString::new(MEMORY).unwrap();
    // SAFETY: the path lives longer than the call.
    let memory = unsafe { libc::open(memory.as_ptr(), libc::O_RDWR) };
    tell("memory", memory.into());
    attempt!("write to memory", libc::SYS_write, memory, c"x".as_ptr(), 1);
    attempt!("discard memory", libc::SYS_fallocate, memory, PUNCH_HOLE, 0_i64, 4_096_i64);
    attempt!("allocate memory", libc::SYS_fallocate, memory, 0, 0_i64, 4_096_i64);
    attempt!("fchmod memory", libc::SYS_fchmod, memory, 0o666);
    attempt!("times of memory", libc::SYS_utimensat, memory, null, null, 0);
    let own = std::ffi::CString::new(format!("{FOLDER}/file")).unwrap();
    attempt!("chmod shared file", libc::SYS_chmod, own.as_ptr(), 0o640);
    // SAFETY: the path lives longer than the call.
    let own = unsafe { libc::open(own.as_ptr(), libc::O_RDWR) };
    attempt!("fchmod shared file", libc::SYS_fchmod, own, 0o604);
    attempt!("discard shared file", libc::SYS_fallocate, own, PUNCH_HOLE, 0_i64, 4_096_i64);
}

fn specification(folder: &Utf8Path, user: Option<u32>) -> CageSpec {
    let program = Utf8PathBuf::from_path_buf(std::env::current_exe().unwrap()).unwrap();
    let mount = |path: &Utf8Path| Mount {
        source: path.to_owned(),
        target: path.to_owned(),
        optional: true,
        access: MountAccess::Read,
    };
    let file = |name: &str, writable, descriptor| OpenFile {
        path: folder.join(name),
        writable,
        descriptor,
        owner: FileOwner::Vm,
    };
    let libraries = ["/usr/lib", "/usr/lib64", "/lib", "/lib64"].map(Utf8Path::new).into_iter();
    // A merged /usr: the cage has the same links.
    let libraries = libraries.filter(|path| !path.is_symlink()).map(mount);
    CageSpec {
        id: "fake-vmm-test".to_owned(),
        program: program.clone(),
        arguments: vec![FAKE.to_owned(), folder.join("secret").into_string()],
        environment: BTreeMap::new(),
        directory: folder.join("vm"),
        mounts: std::iter::once(mount(&program)).chain(libraries).collect(),
        folders: Vec::new(),
        read_only_opens: Vec::new(),
        files: vec![file("shared", false, SHARED), file("own", true, OWN)],
        listeners: Vec::new(),
        console_descriptor: CONSOLE,
        console_cap: 1 << 16,
        user,
        limits: false,
        memory_limit: 1 << 30,
        task_limit: 100,
        cpu_percent: None,
        file_limit: Some(LARGEST),
        huge_pages: true,
        write_tracking: false,
    }
}

/// As of a server that is not root: what it shares, and what it may only read, belongs to its own user.
async fn hold_one_that_shares() {
    let folder = std::env::temp_dir().join(format!("fake-vmm-sharing-{}", std::process::id()));
    let folder = Utf8PathBuf::from_path_buf(folder).unwrap();
    for directory in ["vm", "share"] {
        std::fs::create_dir_all(folder.join(directory)).unwrap();
    }
    for name in ["shared", "own", "secret", "memory", "share/file"] {
        std::fs::write(folder.join(name), name).unwrap();
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let mut spec = specification(&folder, None);
    spec.arguments = vec![SHARING.to_owned()];
    spec.files[0].owner = FileOwner::User;
    let (source, target) = (folder.join("memory"), Utf8PathBuf::from(MEMORY));
    spec.mounts.push(Mount { source, target: target.clone(), optional: false, access: MountAccess::Read });
    spec.read_only_opens.push(target);
    spec.folders.push(Folder { source: folder.join("share"), target: FOLDER.into(), writable: true });
    let outcomes = outcomes(&folder, &spec).await;
    let expected = [
        ("fchmod disk", libc::EROFS),
        ("chmod disk", libc::EROFS),
        ("times of disk", libc::EROFS),
        ("memory", 0),
        ("write to memory", libc::EBADF),
        // Told as done, and nothing is done: the content below is compared.
        ("discard memory", 0),
        ("allocate memory", libc::EBADF),
        ("fchmod memory", libc::EROFS),
        ("times of memory", libc::EROFS),
        ("chmod shared file", 0),
        ("fchmod shared file", 0),
        ("discard shared file", 0),
    ];
    for (what, error) in expected {
        assert_eq!(outcomes.get(what), Some(&error), "{what}\n{outcomes:?}");
    }
    let mode = |name: &str| folder.join(name).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(["shared", "memory", "share/file"].map(mode), [0o600, 0o600, 0o604]);
    let content = |name: &str| std::fs::read(folder.join(name)).unwrap();
    assert_eq!((content("memory"), content("share/file")), (b"memory".to_vec(), vec![0; 10]));
    // A disk that another VM writes is refused, by whichever process opens it.
    let other = std::fs::File::open(folder.join("shared")).unwrap();
    other.lock().unwrap();
    let error = spawn(&spec.program, &spec, Duration::from_secs(20)).await.unwrap_err().to_string();
    assert!(error.contains("locking a disk") && error.contains("in use by another VM"), "{error}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// A VMM whose record, directory and cgroup are gone is found by its mark, with its supervisor or without; others are not.
async fn end_those_that_nothing_tells_of() {
    let folder = std::env::temp_dir().join(format!("fake-vmm-strays-{}", std::process::id()));
    let folder = Utf8PathBuf::from_path_buf(folder).unwrap();
    let deadline = Duration::from_secs(20);
    let mut started = Vec::new();
    for place in ["ours/stray", "ours/alone", "ours/unrecorded", "ours/known", "ours/there", "others/stray"] {
        std::fs::create_dir_all(folder.join(place)).unwrap();
        for name in ["shared", "own"] {
            std::fs::write(folder.join(name), name).unwrap();
        }
        let mut spec = specification(&folder, None);
        (spec.directory, spec.arguments) = (folder.join(place), vec![WAITING.to_owned()]);
        spec.id = place.replace('/', "-");
        started.push((place, spawn(&spec.program, &spec, deadline).await.unwrap().record));
    }
    for (place, record) in &started {
        if *place == "ours/alone" {
            record.supervisor.end(deadline).await.unwrap();
        }
        if *place == "ours/unrecorded" {
            std::fs::remove_file(folder.join(place).join("process.json")).unwrap();
        } else if *place != "ours/there" {
            std::fs::remove_dir_all(folder.join(place)).unwrap();
        }
    }
    // A folder that was renamed is the same one, and what is recorded in it still is.
    std::fs::rename(folder.join("ours"), folder.join("renamed")).unwrap();
    let mut ended = end_strays(&folder.join("renamed"), |name| name == "known", deadline).await.unwrap();
    ended.sort();
    assert_eq!(ended, ["alone", "stray", "unrecorded"]);
    for (place, record) in &started {
        assert_eq!(
            has_ended(record.vmm).await,
            ["ours/stray", "ours/alone", "ours/unrecorded"].contains(place),
            "{place}"
        );
        record.vmm.end(deadline).await.unwrap();
        record.supervisor.end(deadline).await.unwrap();
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// True if it has ended already, waited for or not.
async fn has_ended(process: ProcessIdentity) -> bool {
    match process.open().unwrap() {
        Some(process) => {
            tokio::time::timeout(Duration::from_millis(100), process.ended().unwrap()).await.is_ok()
        }
        None => true,
    }
}

/// Runs it to its end; what it tells, and how each attempt ended.
async fn outcomes(folder: &Utf8Path, spec: &CageSpec) -> BTreeMap<String, i32> {
    let spawned = spawn(&spec.program, spec, Duration::from_secs(20)).await.unwrap();
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", spawned.record.vmm.pid));
    for process in [spawned.record.vmm, spawned.record.supervisor] {
        if let Some(process) = process.open().unwrap() {
            tokio::time::timeout(Duration::from_secs(20), process.ended().unwrap()).await.unwrap().unwrap();
        }
    }
    // It may have ended before its score was read.
    assert!(score.is_err() || score.is_ok_and(|score| score.trim() == "500"));
    let log = std::fs::read_to_string(folder.join("vm/vmm.log")).unwrap();
    let told = log.lines().filter_map(|line| line.split_once('='));
    told.map(|(what, error)| (what.to_owned(), error.parse().unwrap())).collect()
}

async fn hold() {
    let off: Vec<String> = layers()
        .into_iter()
        .filter_map(|(name, layer)| match layer {
            Layer::Off(why) if name.starts_with("namespaces") => Some(why),
            _ => None,
        })
        .collect();
    if !off.is_empty() {
        eprintln!("SKIP: there are no cages here: {off:?}");
        return;
    }
    let folder = std::env::temp_dir().join(format!("fake-vmm-{}", std::process::id()));
    let folder = Utf8PathBuf::from_path_buf(folder).unwrap();
    std::fs::create_dir_all(folder.join("vm")).unwrap();
    for name in ["shared", "own", "secret"] {
        std::fs::write(folder.join(name), name).unwrap();
    }
    let is_root =
        std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    // The program itself must be readable for the cage's user, and is only if the way to it is.
    let spec = specification(&folder, is_root.then_some(0x6000_1234));
    let outcomes = outcomes(&folder, &spec).await;
    let expected = [
        ("keyctl", libc::ENOSYS),
        ("add_key", libc::ENOSYS),
        ("request_key", libc::ENOSYS),
        ("vsock", libc::EAFNOSUPPORT),
        ("inet", libc::EAFNOSUPPORT),
        ("netlink", libc::EAFNOSUPPORT),
        ("ptrace", libc::ENOSYS),
        ("process_vm_readv", libc::ENOSYS),
        ("bpf", libc::ENOSYS),
        ("io_uring", libc::ENOSYS),
        ("unshare", libc::ENOSYS),
        ("mount", libc::ENOSYS),
        ("clone3", libc::ENOSYS),
        ("process", libc::EPERM),
        ("pidfd_open", libc::ENOSYS),
        ("fchmod", libc::ENOSYS),
        ("fchown", libc::ENOSYS),
        ("fsetxattr", libc::ENOSYS),
        ("times", libc::ENOSYS),
        ("write to shared", libc::EBADF),
        ("truncate shared", libc::EINVAL),
        ("another's file", libc::ENOENT),
        ("password file", libc::ENOENT),
        ("processes", libc::ENOENT),
        ("own write", 0),
        ("huge write", libc::EFBIG),
        ("huge file", libc::EFBIG),
        ("unix", 0),
        ("thread", 0),
    ];
    for (what, error) in expected {
        assert_eq!(outcomes.get(what), Some(&error), "{what}\n{outcomes:?}");
    }
    assert!([libc::EROFS, libc::EACCES].contains(&outcomes["new file"]), "{outcomes:?}");
    let shared = folder.join("shared");
    assert_eq!(std::fs::read(&shared).unwrap(), b"shared");
    assert_eq!(shared.metadata().unwrap().permissions().mode() & 0o022, 0);
    std::fs::remove_dir_all(folder).unwrap();
    hold_one_that_shares().await;
    end_those_that_nothing_tells_of().await;
    println!("{NAME}: ok");
}
