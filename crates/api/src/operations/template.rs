//! Templates and their golden snapshots.

use microvm_types::template::Template;

use crate::operation::{Json, LongJson, Nothing, TemplateRef};
use crate::queries::NoQuery;
use crate::snapshot::{GoldenList, GoldenVersion};
use crate::system::{TemplateList, TemplateText};

crate::rows! {
    /// List templates
    ///
    /// `failed` names the files that cannot be used.
    List = TEMPLATE_LIST, Get "/templates", Safe, Offered, ((), NoQuery) Nothing => Json<TemplateList>;

    /// Show a template
    Get = TEMPLATE_GET, Get "/templates/{name}", Safe, Offered, (TemplateRef, NoQuery) Nothing => Json<Template>;

    /// Keep a template
    Put = TEMPLATE_PUT, Put "/templates/{name}", Never, Withheld, (TemplateRef, NoQuery) LongJson<TemplateText> => Json<Template>;

    /// Remove a template
    Remove = TEMPLATE_REMOVE, Delete "/templates/{name}", Never, Withheld, (TemplateRef, NoQuery) Nothing => Nothing;

    /// Check a template without keeping it
    Validate = TEMPLATE_VALIDATE, Post "/templates/{name}/validate", Safe, Offered, (TemplateRef, NoQuery) LongJson<TemplateText> => Json<Template>;

    /// List the golden snapshots of a template
    ///
    /// Oldest first.
    Golden = TEMPLATE_GOLDEN, Get "/templates/{name}/golden", Safe, Withheld, (TemplateRef, NoQuery) Nothing => Json<GoldenList>;

    /// Update the golden snapshot of a template
    ///
    /// Boots the template anew for all VMs to come.
    UpdateGolden = TEMPLATE_UPDATE_GOLDEN, Post "/templates/{name}/golden/update", Never, Withheld, (TemplateRef, NoQuery) Nothing => Json<GoldenVersion>;

    /// Roll the golden snapshot of a template back
    ///
    /// To the version before.
    RollBackGolden = TEMPLATE_ROLL_BACK_GOLDEN, Post "/templates/{name}/golden/rollback", Never, Withheld, (TemplateRef, NoQuery) Nothing => Json<GoldenVersion>;
}
