//! Operations and their handlers: the only place that ties them.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::{MethodFilter, MethodRouter, on};
use microvm_api::operation::{Method, Operation, Row};
use microvm_api::operations::{
    context, event, file, guest, image, kernel, pool, process, snapshot, system, template, vm, volume,
};

use crate::app::App;
use crate::call::{Call, Taken};
use crate::handlers::{
    archive, changes, contexts, encoded, events, exec, execute, exports, files, guest as guests, images,
    kernels, pools, ports, processes, room, snapshots, start_commands, system as host, templates, vms,
    volumes, wait, watch,
};
use crate::reply::Replies;
use crate::session::Session;

/// Operations with what serves them.
#[derive(Default)]
pub(crate) struct Routes(Vec<(Row, MethodRouter<Arc<App>>)>);

impl Routes {
    /// The same, and a handler for one more operation. It takes the session of the caller and
    /// a [`Call`] of the operation, and answers what the operation
    /// promises; anything else does not compile.
    pub(crate) fn on<O, F, Fut, R>(mut self, _operation: O, handler: F) -> Self
    where
        O: Operation,
        O::Body: Taken,
        F: Fn(Session, Call<O>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
        R: Replies<O::Answer>,
    {
        let serve = move |State(app): State<Arc<App>>, request: Request| async move {
            match Call::read(&app, request).await {
                Ok((session, call)) => handler(session, call).await.into_answer(),
                Err(failure) => axum::response::IntoResponse::into_response(failure),
            }
        };
        self.0.push((Row::of::<O>(), on(filter(O::METHOD), serve)));
        self
    }

    /// A router of them, each with and without a slash at the end.
    pub(crate) fn into_router(self) -> Router<Arc<App>> {
        self.0.into_iter().fold(Router::new(), |router, (row, route)| {
            let path = format!("{}{}", microvm_api::PREFIX, row.path);
            router.route(&format!("{path}/"), route.clone()).route(&path, route)
        })
    }
}

const fn filter(method: Method) -> MethodFilter {
    match method {
        Method::Get => MethodFilter::GET,
        Method::Post => MethodFilter::POST,
        Method::Put => MethodFilter::PUT,
        Method::Delete => MethodFilter::DELETE,
    }
}

/// All operations of [`microvm_api::operations`].
pub(crate) fn all() -> Routes {
    let routes = Routes::default()
        .on(vm::List, vms::list)
        .on(vm::Create, vms::create)
        .on(vm::Get, vms::get)
        .on(vm::Delete, vms::delete)
        .on(vm::Start, vms::start)
        .on(vm::Stop, vms::stop)
        .on(vm::Pause, vms::pause)
        .on(vm::Resume, vms::resume)
        .on(vm::Hibernate, vms::hibernate)
        .on(vm::Resize, vms::resize)
        .on(vm::Restart, vms::restart)
        .on(vm::Kill, vms::kill)
        .on(vm::Rename, changes::rename)
        .on(vm::Update, changes::update)
        .on(vm::Wait, wait::wait)
        .on(vm::Stats, vms::stats)
        .on(vm::Export, exports::vm)
        .on(vm::Changes, exports::changes)
        .on(vm::Fork, snapshots::fork)
        .on(vm::Metrics, vms::metrics)
        .on(vm::Console, vms::console)
        .on(guest::Ping, guests::ping)
        .on(guest::PingByPost, guests::ping)
        .on(guest::SystemInfo, guests::system_info)
        .on(guest::Processes, guests::processes)
        .on(guest::Health, guests::health)
        .on(guest::HealthOfAll, guests::health_of_all)
        .on(guest::StartCommands, start_commands::list)
        .on(guest::Shutdown, guests::shutdown)
        .on(guest::Run, execute::execute)
        .on(guest::Exec, exec::exec)
        .on(guest::Shell, exec::shell)
        .on(guest::Connect, ports::connect)
        .on(process::List, processes::list)
        .on(process::Signal, processes::signal)
        .on(context::List, contexts::list)
        .on(context::Create, contexts::create)
        .on(context::Remove, contexts::remove)
        .on(context::Restart, contexts::restart)
        .on(context::Interrupt, contexts::interrupt)
        .on(context::Execute, contexts::execute)
        .on(file::Read, files::read)
        .on(file::Write, files::write)
        .on(file::ReadEncoded, encoded::read)
        .on(file::WriteEncoded, encoded::write)
        .on(file::ReadExtents, files::read_extents)
        .on(file::WriteExtents, files::write_extents)
        .on(file::Remove, files::remove)
        .on(file::Stat, files::stat)
        .on(file::List, files::list)
        .on(file::Hash, files::hash)
        .on(file::MakeDir, files::make_directory)
        .on(file::Rename, files::rename)
        .on(file::Watch, watch::watch)
        .on(file::Pull, archive::pull)
        .on(file::Push, archive::push);
    store(routes)
}

/// Stored things: snapshots, pools, images, kernels, templates; and the host.
fn store(routes: Routes) -> Routes {
    routes
        .on(snapshot::List, snapshots::list)
        .on(snapshot::Statistics, snapshots::statistics)
        .on(snapshot::CleanUp, snapshots::cleanup)
        .on(snapshot::Import, snapshots::import)
        .on(snapshot::OfVm, snapshots::of_vm)
        .on(snapshot::Create, snapshots::create)
        .on(snapshot::Get, snapshots::get)
        .on(snapshot::Remove, snapshots::remove)
        .on(snapshot::Restore, snapshots::restore)
        .on(snapshot::Verify, snapshots::verify)
        .on(snapshot::Export, snapshots::export)
        .on(pool::List, pools::list)
        .on(pool::Create, pools::create)
        .on(pool::Get, pools::get)
        .on(pool::Remove, pools::remove)
        .on(pool::Resize, pools::resize)
        .on(pool::Acquire, pools::acquire)
        .on(pool::Release, pools::release)
        .on(event::Follow, events::events)
        .on(event::OfSystem, events::of_system)
        .on(event::OfVm, events::of_vm)
        .on(image::List, images::list)
        .on(image::Add, images::add)
        .on(image::Prune, images::prune)
        .on(image::Commit, images::commit)
        .on(image::Tag, images::tag)
        .on(image::Export, exports::image)
        .on(image::Get, images::get)
        .on(image::Remove, images::remove)
        .on(kernel::List, kernels::list)
        .on(kernel::Add, kernels::add)
        .on(kernel::Get, kernels::get)
        .on(kernel::Remove, kernels::remove)
        .on(volume::List, volumes::list)
        .on(volume::Create, volumes::create)
        .on(volume::Prune, volumes::prune)
        .on(volume::Get, volumes::get)
        .on(volume::Remove, volumes::remove)
        .on(template::List, templates::list)
        .on(template::Get, templates::get)
        .on(template::Put, templates::keep)
        .on(template::Remove, templates::remove)
        .on(template::Validate, templates::validate)
        .on(template::Golden, templates::golden)
        .on(template::UpdateGolden, templates::update_golden)
        .on(template::RollBackGolden, templates::rollback_golden)
        .on(system::Info, host::info)
        .on(system::Doctor, host::doctor)
        .on(system::Verify, host::verify)
        .on(system::Metrics, host::metrics)
        .on(system::DiskUsage, room::disk_usage)
        .on(system::Prune, room::prune)
        .on(system::Stop, host::stop)
        .on(system::Live, host::live)
        .on(system::Ready, host::ready)
        .on(system::Health, host::health)
        .on(system::HealthOf, host::health_of)
        .on(system::OpenApi, host::openapi)
}

#[cfg(test)]
mod tests;
