//! The schemas of all bodies, for the OpenAPI document.

use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(components(schemas(
    crate::exec::ClientMessage,
    crate::exec::ServerMessage,
    crate::exec::Execute,
    crate::exec::Executed,
    crate::exec::ProcessList,
    crate::exec::SendSignal,
    crate::files::FileHash,
    crate::files::FileList,
    crate::guest::GuestProcesses,
    crate::guest::HealthReply,
    crate::guest::Ping,
    crate::guest::SystemInfoReply,
    crate::image::AddImage,
    crate::image::Freed,
    crate::image::Image,
    crate::image::ImageList,
    crate::kernel::AddKernel,
    crate::kernel::Kernel,
    crate::kernel::KernelList,
    crate::pool::Acquire,
    crate::pool::Acquired,
    crate::pool::CreatePool,
    crate::pool::Pool,
    crate::pool::PoolList,
    crate::pool::ResizePool,
    crate::problem::Problem,
    crate::progress::ProgressLine,
    crate::snapshot::BegunSnapshot,
    crate::snapshot::Cleaned,
    crate::snapshot::CreateSnapshot,
    crate::snapshot::ForkVm,
    crate::snapshot::Forked,
    crate::snapshot::GoldenList,
    crate::snapshot::GoldenVersion,
    crate::snapshot::RestoreSnapshot,
    crate::snapshot::Restored,
    crate::snapshot::Snapshot,
    crate::snapshot::SnapshotFile,
    crate::snapshot::SnapshotList,
    crate::snapshot::SnapshotStatistics,
    crate::snapshot::Verification,
    crate::system::Doctor,
    crate::system::HostInfo,
    crate::system::Liveness,
    crate::system::FailedTemplate,
    crate::system::TemplateList,
    crate::system::TemplateText,
    crate::vm::Counters,
    crate::vm::CreateVm,
    crate::vm::Event,
    crate::vm::EventMessage,
    crate::vm::ResizeVm,
    crate::vm::StopVm,
    crate::vm::Vm,
    crate::vm::VmList,
    microvm_types::files::FileStat,
    microvm_types::files::LeftOut,
    microvm_types::files::LeftOutEntry,
    microvm_types::files::TransferSummary,
    microvm_types::files::WatchEvent,
    microvm_types::template::Template,
)))]
struct Schemas;

/// The schemas as the `components` object of an OpenAPI document.
#[must_use]
pub fn schemas() -> serde_json::Value {
    // Schemas are plain data; should one ever not serialise, an empty object fails the document's test.
    let document = serde_json::to_value(Schemas::openapi()).unwrap_or_default();
    document.get("components").cloned().unwrap_or_else(|| serde_json::json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        let components = schemas();
        let text = components.to_string();
        let mut seen = 0;
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(components["schemas"].get(name).is_some(), "no schema for {name}");
            seen += 1;
        }
        assert!(seen > 10, "only {seen} references");
    }
}
