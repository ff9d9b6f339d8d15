//! Templates.

use axum::Json;
use microvm_api::operation::TemplateRef;
use microvm_api::operations::template;
use microvm_api::snapshot::{GoldenList, GoldenVersion};
use microvm_api::system::{FailedTemplate, TemplateList};
use microvm_types::template::Template;

use crate::call::Call;
use crate::failure::Failure;
use crate::reply::Done;
use crate::session::Session;

pub(crate) async fn list(app: Session, _: Call<template::List>) -> Result<Json<TemplateList>, Failure> {
    let set = app.services.catalog.templates()?;
    let tell = |failed: &microvm_core::TemplateError| FailedTemplate {
        name: failed.name.clone(),
        reason: failed.reason.clone(),
    };
    Ok(Json(TemplateList {
        templates: set.templates.values().cloned().collect(),
        failed: set.failed.iter().map(tell).collect(),
    }))
}

pub(crate) async fn keep(
    app: Session,
    Call { path: TemplateRef(name), body: request, .. }: Call<template::Put>,
) -> Result<Json<Template>, Failure> {
    Ok(Json(app.services.catalog.put_template(&name, &request.text, request.replace)?))
}

pub(crate) async fn remove(
    app: Session,
    Call { path: TemplateRef(name), .. }: Call<template::Remove>,
) -> Result<Done, Failure> {
    app.services.catalog.remove_template(&name)?;
    Ok(Done)
}

pub(crate) async fn validate(
    app: Session,
    Call { path: TemplateRef(name), body: request, .. }: Call<template::Validate>,
) -> Result<Json<Template>, Failure> {
    Ok(Json(app.services.catalog.check_template(&name, &request.text)?))
}

pub(crate) async fn get(
    app: Session,
    Call { path: TemplateRef(name), .. }: Call<template::Get>,
) -> Result<Json<Template>, Failure> {
    Ok(Json(app.services.catalog.template(&name)?))
}

pub(crate) async fn golden(
    app: Session,
    Call { path: TemplateRef(name), .. }: Call<template::Golden>,
) -> Result<Json<GoldenList>, Failure> {
    let versions = app.services.goldens.versions(&name).await?;
    Ok(Json(GoldenList { versions: versions.into_iter().map(|version| app.golden(version)).collect() }))
}

pub(crate) async fn update_golden(
    app: Session,
    Call { path: TemplateRef(name), .. }: Call<template::UpdateGolden>,
) -> Result<Json<GoldenVersion>, Failure> {
    Ok(Json(app.golden(app.services.goldens.update(&name).await?)))
}

pub(crate) async fn rollback_golden(
    app: Session,
    Call { path: TemplateRef(name), .. }: Call<template::RollBackGolden>,
) -> Result<Json<GoldenVersion>, Failure> {
    Ok(Json(app.golden(app.services.goldens.rollback(&name).await?)))
}
