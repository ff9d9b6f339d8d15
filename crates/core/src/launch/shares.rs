//! Shared folders: what is looked at before a VM has any, and what a machine and its guest are told of them.

use camino::{Utf8Path, Utf8PathBuf};
use microvm_ports::StorageError;
use microvm_ports::guest::GuestShare;
use microvm_ports::hypervisor::{MachineShare, Sharing};
use microvm_ports::storage::ResolvedKernel;
use microvm_types::share::Share;
use microvm_types::template::Template;

use crate::error::ServiceError;
use crate::ports::Ports;

/// Looks at the folders of a VM that is to be made; in the template they get their real paths.
///
/// # Errors
/// [`ServiceError::NoSharing`] and [`ServiceError::KernelWithoutShares`] where they could never be mounted; a folder that
/// is not there or may not be shared.
pub(crate) async fn admit(
    ports: &Ports,
    template: &mut Template,
    kernel: &ResolvedKernel,
) -> Result<(), ServiceError> {
    if template.shares.is_empty() {
        return Ok(());
    }
    match ports.hypervisor(template)?.probe().await?.abilities.sharing {
        None => return Err(ServiceError::NoSharing),
        Some(Sharing::Plan9) => {
            if !ports.kernels.mounts_shares(&kernel.info.name).await? {
                let (name, release) = (kernel.info.name.clone(), kernel.info.release.clone());
                return Err(ServiceError::KernelWithoutShares { name, release });
            }
        }
    }
    for share in &mut template.shares {
        share.source = ports.vm_storage.inspect_folder(Utf8Path::new(&share.source)).await?.into_string();
    }
    Ok(())
}

/// The folders as they are now, for a machine that boots.
pub(crate) async fn for_machine(ports: &Ports, shares: &[Share]) -> Result<Vec<MachineShare>, StorageError> {
    let mut all = Vec::with_capacity(shares.len());
    for (index, share) in shares.iter().enumerate() {
        let source = Utf8PathBuf::from(&share.source);
        let real = ports.vm_storage.inspect_folder(&source).await?;
        // Checked at creation and at every boot: a link put there meanwhile could lead to any folder of the host.
        if real != source {
            let what = format!("the folder `{source}`");
            return Err(StorageError::BadInput { what, detail: format!("it has become a link to `{real}`") });
        }
        all.push(MachineShare { source, tag: tag(index), read_only: share.read_only });
    }
    Ok(all)
}

/// What the guest mounts where.
pub(crate) fn for_guest(shares: &[Share]) -> Vec<GuestShare> {
    let all = shares.iter().enumerate();
    all.map(|(index, share)| GuestShare {
        tag: tag(index),
        target: share.target.clone(),
        read_only: share.read_only,
    })
    .collect()
}

fn tag(index: usize) -> String {
    format!("share{index}")
}

/// Refuses to branch a VM that uses what can belong to one machine only.
pub(crate) fn check_whole(template: &Template) -> Result<(), ServiceError> {
    match template.shares.first() {
        Some(share) => Err(ServiceError::SharedFolder { target: share.target.clone() }),
        None => Ok(()),
    }
}
