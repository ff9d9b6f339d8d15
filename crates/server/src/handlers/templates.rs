//! Templates.

use axum::Json;
use axum::http::StatusCode;
use microvm_api::snapshot::{GoldenList, GoldenVersion};
use microvm_api::system::{FailedTemplate, TemplateList, TemplateText};
use microvm_types::template::Template;

use crate::extract::{Body, Path};
use crate::failure::Failure;
use crate::session::Session;

pub(crate) async fn list(app: Session) -> Json<TemplateList> {
    let set = app.services.catalog.templates();
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
    app: Session,
    Path(name): Path<String>,
    Body(request): Body<TemplateText>,
) -> Result<Json<Template>, Failure> {
    Ok(Json(app.services.catalog.put_template(&name, &request.text, request.replace)?))
}

pub(crate) async fn remove(app: Session, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    app.services.catalog.remove_template(&name)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn validate(
    app: Session,
    Path(name): Path<String>,
    Body(request): Body<TemplateText>,
) -> Result<Json<Template>, Failure> {
    Ok(Json(app.services.catalog.check_template(&name, &request.text)?))
}

pub(crate) async fn get(app: Session, Path(name): Path<String>) -> Result<Json<Template>, Failure> {
    Ok(Json(app.services.catalog.template(&name)?))
}

pub(crate) async fn golden(app: Session, Path(name): Path<String>) -> Result<Json<GoldenList>, Failure> {
    let versions = app.services.goldens.versions(&name).await?;
    Ok(Json(GoldenList { versions: versions.into_iter().map(|version| app.golden(version)).collect() }))
}

pub(crate) async fn update_golden(
    app: Session,
    Path(name): Path<String>,
) -> Result<Json<GoldenVersion>, Failure> {
    Ok(Json(app.golden(app.services.goldens.update(&name).await?)))
}

pub(crate) async fn rollback_golden(
    app: Session,
    Path(name): Path<String>,
) -> Result<Json<GoldenVersion>, Failure> {
    Ok(Json(app.golden(app.services.goldens.rollback(&name).await?)))
}
