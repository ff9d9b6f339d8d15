//! Templates.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
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
