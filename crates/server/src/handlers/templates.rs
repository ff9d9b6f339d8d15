//! Templates.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use microvm_api::snapshot::{GoldenList, GoldenVersion};
use microvm_api::system::{FailedTemplate, TemplateList, TemplateText};
use microvm_types::template::Template;

use crate::app::App;
use crate::extract::{Body, Path};
use crate::failure::Failure;

pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<TemplateList> {
    let set = app.service.template_set();
    let tell = |failed: &microvm_core::TemplateError| FailedTemplate {
        name: failed.name.clone(),
        reason: failed.reason.clone(),
    };
    Json(TemplateList {
        templates: set.templates.values().cloned().collect(),
        failed: set.failed.iter().map(tell).collect(),
    })
}

pub(crate) async fn keep(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(request): Body<TemplateText>,
) -> Result<Json<Template>, Failure> {
    Ok(Json(app.service.put_template(&name, &request.text, request.replace)?))
}

pub(crate) async fn remove(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    app.service.remove_template(&name)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn validate(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(request): Body<TemplateText>,
) -> Result<Json<Template>, Failure> {
    Ok(Json(app.service.check_template(&name, &request.text)?))
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
