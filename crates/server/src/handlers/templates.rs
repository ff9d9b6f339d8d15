//! Templates.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use microvm_api::snapshot::{GoldenList, GoldenVersion};
use microvm_api::system::TemplateList;
use microvm_types::template::Template;

use crate::app::App;
use crate::failure::Failure;

pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<TemplateList> {
    Json(TemplateList { templates: app.service.templates() })
}

pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Template>, Failure> {
    Ok(Json(app.service.template(&name)?))
}

pub(crate) async fn golden(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<GoldenList>, Failure> {
    let versions = app.service.golden_versions(&name).await?;
    Ok(Json(GoldenList { versions: versions.into_iter().map(|version| app.golden(version)).collect() }))
}

pub(crate) async fn update_golden(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<GoldenVersion>, Failure> {
    Ok(Json(app.golden(app.service.update_golden(&name).await?)))
}

pub(crate) async fn rollback_golden(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<GoldenVersion>, Failure> {
    Ok(Json(app.golden(app.service.rollback_golden(&name).await?)))
}
