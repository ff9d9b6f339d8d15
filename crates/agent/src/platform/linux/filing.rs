//! [`Files`] on Linux.

use std::sync::Arc;

use microvm_protocol::messages::{
    List, MakeDirectory, PullArchive, ReadFile, Remove, Rename, Reply, Watch, WriteFile, Written,
};
use microvm_protocol::mux::StreamHandle;

use super::{Linux, files};
use crate::core::failure::AgentResult;
use crate::core::platform::{Defaults, Files};

impl Files for Linux {
    type Owner = files::Owner;

    fn owner(specification: &str, defaults: &Defaults) -> AgentResult<Self::Owner> {
        files::Owner::resolve(specification, &defaults.user)
    }

    async fn read(stream: &Arc<StreamHandle>, request: ReadFile) -> AgentResult<()> {
        files::read(stream, request).await
    }

    async fn write(
        stream: &Arc<StreamHandle>,
        request: WriteFile,
        owner: Option<Self::Owner>,
    ) -> AgentResult<Written> {
        files::write(stream, request, owner).await
    }

    fn stat(path: &[u8]) -> AgentResult<Reply> {
        files::stat(path)
    }

    async fn list(stream: &Arc<StreamHandle>, request: List) -> AgentResult<()> {
        files::list(stream, request).await
    }

    fn make_directory(request: &MakeDirectory, owner: Option<Self::Owner>) -> AgentResult<()> {
        files::make_directory(request, owner)
    }

    fn rename(request: &Rename) -> AgentResult<()> {
        files::rename(request)
    }

    fn remove(request: &Remove) -> AgentResult<()> {
        files::remove(request)
    }

    fn hash(path: &[u8]) -> AgentResult<Reply> {
        files::hash(path)
    }

    async fn watch(stream: &StreamHandle, request: Watch) -> AgentResult<()> {
        files::watch(stream, request).await
    }

    async fn push_archive(
        stream: &Arc<StreamHandle>,
        path: Vec<u8>,
        owner: Option<Self::Owner>,
    ) -> AgentResult<Written> {
        files::unpack(stream, path, owner).await
    }

    async fn pull_archive(stream: &Arc<StreamHandle>, request: PullArchive) -> AgentResult<()> {
        files::pack(stream, request).await
    }

    async fn pull_layer(stream: &Arc<StreamHandle>) -> AgentResult<()> {
        files::pack_layer(stream).await
    }

    async fn pull_root(stream: &Arc<StreamHandle>, path: Vec<u8>) -> AgentResult<()> {
        files::pack_root(stream, path).await
    }
}
