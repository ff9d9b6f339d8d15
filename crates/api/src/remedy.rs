//! Remedies as requests of the API.

use microvm_types::remedy::{Action, Remedy};

use crate::PREFIX;
use crate::advice::Advice;
use crate::operation::Operation;
use crate::operations::{file, image, kernel, pool, snapshot, template, vm, volume};

impl From<Remedy> for Advice {
    fn from(Remedy { action, of }: Remedy) -> Self {
        let request = request(action).map(|(method, path)| {
            let path = match &of {
                // Most name one thing; it is the last parameter of the path.
                Some(name) => match (path.rfind('{'), path.rfind('}')) {
                    (Some(from), Some(to)) => format!("{}{name}{}", &path[..from], &path[to + 1..]),
                    _ => path.to_owned(),
                },
                None => path.to_owned(),
            };
            format!("{method} {PREFIX}{path}")
        });
        Self { action, of, request }
    }
}

/// Method and path (below the prefix) of the operation that does it; `None` if no single request does.
#[must_use]
pub const fn request(action: Action) -> Option<(&'static str, &'static str)> {
    const fn of<O: Operation>() -> (&'static str, &'static str) {
        (O::METHOD.as_str(), O::PATH)
    }
    Some(match action {
        // No server answers, or no single request does it.
        Action::StartServer | Action::RestartVm | Action::RaiseLimit => return None,
        Action::ListVms => of::<vm::List>(),
        Action::RemoveVm | Action::ForgetDisks => of::<vm::Delete>(),
        Action::StartVm | Action::StartVmCold => of::<vm::Start>(),
        Action::ResumeVm => of::<vm::Resume>(),
        Action::StopVmByForce => of::<vm::Stop>(),
        Action::ShowConsole => of::<vm::Console>(),
        Action::CopyFiles => of::<file::Push>(),
        Action::ListImages => of::<image::List>(),
        Action::BuildImage | Action::PullImage => of::<image::Add>(),
        Action::ListKernels => of::<kernel::List>(),
        Action::BuildKernel | Action::TakeDistributionKernel => of::<kernel::Add>(),
        Action::ListSnapshots => of::<snapshot::List>(),
        Action::RemoveSnapshot => of::<snapshot::Remove>(),
        Action::RestoreSnapshot => of::<snapshot::Restore>(),
        Action::ListGoldenSnapshots => of::<template::Golden>(),
        Action::ListPools => of::<pool::List>(),
        Action::RemovePool => of::<pool::Remove>(),
        Action::ResizePool => of::<pool::Resize>(),
        Action::ListVolumes => of::<volume::List>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_in_their_requests() {
        let told = |remedy: Remedy| Advice::from(remedy).request;
        assert_eq!(told(Action::ListVms.any()).as_deref(), Some("GET /api/v1/vms"));
        assert_eq!(told(Action::StartVm.of("dev")).as_deref(), Some("POST /api/v1/vms/dev/start"));
        assert_eq!(told(Action::StartVm.any()).as_deref(), Some("POST /api/v1/vms/{vm}/start"));
        assert_eq!(told(Action::RemoveSnapshot.of("s")).as_deref(), Some("DELETE /api/v1/snapshots/{vm}/s"));
        assert_eq!(told(Action::StartServer.any()), None);
    }
}
