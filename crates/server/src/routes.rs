//! The one table of routes: what it is, who may, what it takes, what it gives.

use std::sync::Arc;

use axum::http::Method;
use axum::routing::{MethodRouter, delete, get, post, put};

use crate::app::App;
use crate::caller::Permission::{self, *};
use crate::handlers::{
    archive, events, exec, execute, files, guest, images, kernels, pools, ports, processes, snapshots,
    system, templates, vms, watch,
};

/// One route, below [`microvm_api::PREFIX`].
pub struct Route {
    /// Method.
    pub method: Method,
    /// Path; segments in braces are parameters.
    pub path: &'static str,
    /// What a caller needs.
    pub permission: Permission,
    /// One line for people.
    pub summary: &'static str,
    /// Parameters in the query.
    pub query: &'static [&'static str],
    /// Name of the request body's schema, or a media type; empty: none.
    pub takes: &'static str,
    /// Status of success.
    pub status: u16,
    /// Name of the answer's schema, or a media type; empty: none.
    pub gives: &'static str,
    pub(crate) handler: MethodRouter<Arc<App>>,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {} ({})", self.method, self.path, self.permission.as_str())
    }
}

const TAR: &str = "application/x-tar";
const BYTES: &str = "application/octet-stream";
const EXTENTS: &str = microvm_types::extents::MEDIA_TYPE;
const NDJSON: &str = "application/x-ndjson";
const WEBSOCKET: &str = "websocket";

/// All routes.
#[must_use]
#[rustfmt::skip] // A table is read by columns.
pub fn table() -> Vec<Route> {
    let row = |method, path, permission, summary, query, takes, status, gives, handler| Route {
        method, path, permission, summary, query, takes, status, gives, handler,
    };
    let (g, p, u, d) = (Method::GET, Method::POST, Method::PUT, Method::DELETE);
    let (g, p, u, d) = (|| g.clone(), || p.clone(), || u.clone(), || d.clone());
    vec![
        row(g(), "/vms", VmRead, "List VMs", &["label", "metadata", "state", "name", "waiting"], "", 200, "VmList", get(vms::list)),
        row(p(), "/vms", VmCreate, "Create a VM", &[], "CreateVm", 201, "Vm", post(vms::create)),
        row(g(), "/vms/{vm}", VmRead, "One VM", &[], "", 200, "Vm", get(vms::get)),
        row(d(), "/vms/{vm}", VmDelete, "Delete a VM", &[], "", 204, "", delete(vms::delete)),
        row(p(), "/vms/{vm}/start", VmOperate, "Start a VM", &["cold"], "", 200, "Vm", post(vms::start)),
        row(p(), "/vms/{vm}/stop", VmOperate, "Stop a VM", &[], "StopVm", 200, "Vm", post(vms::stop)),
        row(p(), "/vms/{vm}/pause", VmOperate, "Pause a VM", &[], "", 200, "Vm", post(vms::pause)),
        row(p(), "/vms/{vm}/resume", VmOperate, "Resume a VM", &[], "", 200, "Vm", post(vms::resume)),
        row(p(), "/vms/{vm}/hibernate", VmOperate, "Put a VM to disk; the next request wakes it", &[], "", 200, "Vm", post(vms::hibernate)),
        row(p(), "/vms/{vm}/resize", VmOperate, "Change the memory of a running VM", &[], "ResizeVm", 200, "Vm", post(vms::resize)),
        row(g(), "/vms/{vm}/metrics", VmRead, "Counters of a running VM", &[], "", 200, "Counters", get(vms::metrics)),
        row(g(), "/vms/{vm}/console", VmRead, "Bytes of the console: the newest, or from an offset on", &["limit", "offset"], "", 200, BYTES, get(vms::console)),
        row(g(), "/vms/{vm}/guest/ping", GuestRead, "An empty round trip to the agent", &[], "", 200, "Ping", get(guest::ping)),
        row(p(), "/vms/{vm}/guest/ping", GuestRead, "An empty round trip to the agent", &[], "", 200, "Ping", post(guest::ping)),
        row(g(), "/vms/{vm}/guest/system-info", GuestRead, "The guest as a system", &[], "", 200, "SystemInfoReply", get(guest::system_info)),
        row(g(), "/vms/{vm}/guest/processes", GuestRead, "All processes of the guest", &[], "", 200, "GuestProcesses", get(guest::processes)),
        row(g(), "/vms/{vm}/guest/health", GuestRead, "How the guest is doing", &[], "", 200, "HealthReply", get(guest::health)),
        row(p(), "/vms/{vm}/guest/execute", GuestExecute, "Run a command and collect its output", &[], "Execute", 200, "Executed", post(execute::execute)),
        row(g(), "/vms/{vm}/exec", GuestExecute, "Run a command or attach to one, streaming", &[], "", 101, WEBSOCKET, get(exec::exec)),
        row(g(), "/vms/{vm}/processes", GuestRead, "Processes started through the agent", &[], "", 200, "ProcessList", get(processes::list)),
        row(p(), "/vms/{vm}/processes/{process}/signal", GuestExecute, "Send a signal", &[], "SendSignal", 204, "", post(processes::signal)),
        row(g(), "/vms/{vm}/files", GuestFiles, "Read a file", &["path", "offset", "length"], "", 200, BYTES, get(files::read)),
        row(u(), "/vms/{vm}/files", GuestFiles, "Write a file", &["path", "mode", "owner", "parents", "modified"], BYTES, 200, "TransferSummary", put(files::write)),
        row(g(), "/vms/{vm}/files/extents", GuestFiles, "Read a file, holes told by their length", &["path"], "", 200, EXTENTS, get(files::read_extents)),
        row(u(), "/vms/{vm}/files/extents", GuestFiles, "Write a file, holes told by their length", &["path", "mode", "owner", "parents", "modified"], EXTENTS, 200, "TransferSummary", put(files::write_extents)),
        row(d(), "/vms/{vm}/files", GuestFiles, "Remove a file or directory", &["path", "recursive"], "", 204, "", delete(files::remove)),
        row(g(), "/vms/{vm}/files/stat", GuestFiles, "What is at a path", &["path"], "", 200, "FileStat", get(files::stat)),
        row(g(), "/vms/{vm}/files/list", GuestFiles, "Entries of a directory", &["path", "depth"], "", 200, "FileList", get(files::list)),
        row(g(), "/vms/{vm}/files/hash", GuestFiles, "SHA-256 of a file, computed in the guest", &["path"], "", 200, "FileHash", get(files::hash)),
        row(p(), "/vms/{vm}/files/mkdir", GuestFiles, "Make a directory", &["path", "mode", "parents", "owner"], "", 204, "", post(files::make_directory)),
        row(p(), "/vms/{vm}/files/rename", GuestFiles, "Rename within the guest", &["from", "to"], "", 204, "", post(files::rename)),
        row(g(), "/vms/{vm}/files/watch", GuestFiles, "Changes below a path", &["path", "recursive"], "", 200, NDJSON, get(watch::watch)),
        row(g(), "/vms/{vm}/archive", GuestFiles, "A file or directory as a tar stream", &["path", "exclude", "holes"], "", 200, TAR, get(archive::pull)),
        row(u(), "/vms/{vm}/archive", GuestFiles, "Unpack a tar stream below a directory", &["path", "owner"], TAR, 200, "TransferSummary", put(archive::push)),
        row(g(), "/vms/{vm}/ports/{port}", GuestExecute, "A TCP connection to a guest port", &[], "", 101, WEBSOCKET, get(ports::connect)),
        row(p(), "/vms/{vm}/fork", VmCreate, "Fork a running VM; it goes on", &[], "ForkVm", 201, "Forked", post(snapshots::fork)),
        row(g(), "/snapshots", SnapshotRead, "List snapshots", &["vm", "golden"], "", 200, "SnapshotList", get(snapshots::list)),
        row(g(), "/snapshots/statistics", SnapshotRead, "All snapshots together", &[], "", 200, "SnapshotStatistics", get(snapshots::statistics)),
        row(p(), "/snapshots/cleanup", SnapshotDelete, "Remove old snapshots", &["days_old", "older_than_seconds", "keep", "named"], "", 200, "Cleaned", post(snapshots::cleanup)),
        row(p(), "/snapshots/import", SnapshotCreate, "Take in an exported snapshot", &[], "SnapshotFile", 200, NDJSON, post(snapshots::import)),
        row(g(), "/snapshots/{vm}", SnapshotRead, "Snapshots of a VM", &[], "", 200, "application/json", get(snapshots::of_vm)),
        row(p(), "/snapshots/{vm}", SnapshotCreate, "Take a snapshot of a running VM; it goes on", &[], "CreateSnapshot", 201, "Snapshot", post(snapshots::create)),
        row(g(), "/snapshots/{vm}/{snapshot}", SnapshotRead, "One snapshot", &[], "", 200, "Snapshot", get(snapshots::get)),
        row(d(), "/snapshots/{vm}/{snapshot}", SnapshotDelete, "Remove a snapshot", &["cascade"], "", 204, "", delete(snapshots::remove)),
        row(p(), "/snapshots/{vm}/{snapshot}/restore", SnapshotCreate, "Put its VM back in time, or make new VMs of it", &[], "RestoreSnapshot", 200, "Restored", post(snapshots::restore)),
        row(p(), "/snapshots/{vm}/{snapshot}/verify", SnapshotRead, "Read every byte of a snapshot", &[], "", 200, "Verification", post(snapshots::verify)),
        row(p(), "/snapshots/{vm}/{snapshot}/export", SnapshotRead, "Write a snapshot to a file on the server's host", &[], "SnapshotFile", 200, NDJSON, post(snapshots::export)),
        row(g(), "/pools", VmRead, "List pools", &[], "", 200, "PoolList", get(pools::list)),
        row(p(), "/pools", VmCreate, "Make a pool", &[], "CreatePool", 201, "Pool", post(pools::create)),
        row(g(), "/pools/{pool}", VmRead, "One pool", &[], "", 200, "Pool", get(pools::get)),
        row(d(), "/pools/{pool}", VmDelete, "Remove a pool with the VMs that wait in it", &[], "", 204, "", delete(pools::remove)),
        row(p(), "/pools/{pool}/resize", VmOperate, "Change the sizes of a pool", &[], "ResizePool", 200, "Pool", post(pools::resize)),
        row(p(), "/pools/{pool}/acquire", VmCreate, "Hand out a VM of a pool", &[], "Acquire", 201, "Acquired", post(pools::acquire)),
        row(g(), "/events", VmRead, "What happens to VMs", &[], "", 101, WEBSOCKET, get(events::events)),
        row(g(), "/images", ImageRead, "List images", &[], "", 200, "ImageList", get(images::list)),
        row(p(), "/images", ImageWrite, "Make an image", &[], "AddImage", 200, NDJSON, post(images::add)),
        row(p(), "/images/prune", ImageWrite, "Remove images nobody needs", &[], "", 200, "Freed", post(images::prune)),
        row(g(), "/images/{name}", ImageRead, "One image", &[], "", 200, "Image", get(images::get)),
        row(d(), "/images/{name}", ImageWrite, "Remove an image", &[], "", 204, "", delete(images::remove)),
        row(g(), "/kernels", ImageRead, "List kernels", &[], "", 200, "KernelList", get(kernels::list)),
        row(p(), "/kernels", ImageWrite, "Add a kernel", &[], "AddKernel", 200, NDJSON, post(kernels::add)),
        row(g(), "/kernels/{name}", ImageRead, "One kernel", &[], "", 200, "Kernel", get(kernels::get)),
        row(d(), "/kernels/{name}", ImageWrite, "Remove a kernel", &[], "", 204, "", delete(kernels::remove)),
        row(g(), "/templates", ImageRead, "List templates", &[], "", 200, "TemplateList", get(templates::list)),
        row(g(), "/templates/{name}", ImageRead, "One template", &[], "", 200, "Template", get(templates::get)),
        row(u(), "/templates/{name}", ImageWrite, "Keep a template", &[], "TemplateText", 200, "Template", put(templates::keep)),
        row(d(), "/templates/{name}", ImageWrite, "Remove a template", &[], "", 204, "", delete(templates::remove)),
        row(p(), "/templates/{name}/validate", ImageRead, "Check a template without keeping it", &[], "TemplateText", 200, "Template", post(templates::validate)),
        row(g(), "/templates/{name}/golden", SnapshotRead, "Versions of what a template boots to", &[], "", 200, "GoldenList", get(templates::golden)),
        row(p(), "/templates/{name}/golden/update", SnapshotCreate, "Boot a template anew for all VMs to come", &[], "", 200, "GoldenVersion", post(templates::update_golden)),
        row(p(), "/templates/{name}/golden/rollback", SnapshotCreate, "Go back to the version before", &[], "", 200, "GoldenVersion", post(templates::rollback_golden)),
        row(g(), "/system/info", SystemRead, "The host", &[], "", 200, "HostInfo", get(system::info)),
        row(g(), "/system/doctor", SystemRead, "What is in order on the host and what is not", &[], "", 200, "Doctor", get(system::doctor)),
        row(p(), "/system/verify", ImageRead, "Verify every image and kernel", &[], "", 200, NDJSON, post(system::verify)),
        row(g(), "/metrics", SystemRead, "Counters and histograms, as Prometheus reads them", &[], "", 200, "text/plain", get(system::metrics)),
        row(g(), "/health/live", SystemRead, "Whether the server lives", &[], "", 200, "Liveness", get(system::live)),
        row(g(), "/health/ready", SystemRead, "Whether the server is ready", &[], "", 200, "Liveness", get(system::ready)),
        row(g(), "/openapi.json", SystemRead, "This interface as an OpenAPI document", &[], "", 200, "application/json", get(system::openapi)),
    ]
}
