//! Kernels.

use axum::Json;
use microvm_api::kernel::{Kernel, KernelList, KernelSource};
use microvm_api::operation::{KernelRef, Lines};
use microvm_api::operations::kernel;
use microvm_api::progress::ProgressLine;
use microvm_ports::StorageError;
use microvm_ports::storage::KernelSource as StoreSource;
use microvm_types::Listed;

use crate::call::Call;
use crate::failure::Failure;
use crate::handlers::images::absolute;
use crate::lines::progress;
use crate::reply::{Done, Reply};
use crate::session::Session;

pub(crate) async fn list(app: Session, _: Call<kernel::List>) -> Result<Json<KernelList>, Failure> {
    let Listed { found, unreadable } = app.services.catalog.kernels().await?;
    Ok(Json(KernelList { kernels: found.into_iter().map(|info| app.kernel(info)).collect(), unreadable }))
}

pub(crate) async fn get(
    app: Session,
    Call { path: KernelRef(name), .. }: Call<kernel::Get>,
) -> Result<Json<Kernel>, Failure> {
    let kernels = app.services.catalog.kernels().await?.found;
    let wanted = |info: &microvm_ports::storage::KernelInfo| {
        info.name == name || (name == "default" && info.is_default)
    };
    let info = kernels.into_iter().find(wanted).ok_or_else(|| {
        if name == "default" { StorageError::NoKernel } else { StorageError::UnknownKernel(name) }
    })?;
    Ok(Json(app.kernel(info)))
}

pub(crate) async fn remove(
    app: Session,
    Call { path: KernelRef(name), .. }: Call<kernel::Remove>,
) -> Result<Done, Failure> {
    app.services.catalog.remove_kernel(&name).await?;
    Ok(Done)
}

pub(crate) async fn add(
    app: Session,
    Call { body: request, .. }: Call<kernel::Add>,
) -> Result<Reply<Lines<ProgressLine>>, Failure> {
    let (default_name, source) = match request.source {
        KernelSource::Distribution => (Some("distribution"), StoreSource::Distribution),
        KernelSource::Build => (Some("built"), StoreSource::Build),
        KernelSource::File { path, discovery } => {
            (None, StoreSource::File { path: absolute(&path)?, discovery })
        }
    };
    let name = request
        .name
        .or_else(|| default_name.map(str::to_owned))
        .ok_or_else(|| Failure::invalid("invalid_field", "name: a kernel of your own needs a name"))?;
    Ok(progress(move |progress| async move {
        let info = app.services.catalog.add_kernel(&name, &source, progress).await?;
        Ok(ProgressLine::Kernel { kernel: app.kernel(info) })
    }))
}
