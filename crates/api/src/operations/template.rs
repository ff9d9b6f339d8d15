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
    List = "template.list", Get "/templates", ImageRead, Safe, Offered, ((), NoQuery) Nothing => Json<TemplateList>;

    /// Show a template
    Get = "template.get", Get "/templates/{name}", ImageRead, Safe, Offered, (TemplateRef, NoQuery) Nothing => Json<Template>;

    /// Keep a template
    Put = "template.put", Put "/templates/{name}", ImageWrite, Never, Withheld, (TemplateRef, NoQuery) LongJson<TemplateText> => Json<Template>;

    /// Remove a template
    Remove = "template.remove", Delete "/templates/{name}", ImageWrite, Never, Withheld, (TemplateRef, NoQuery) Nothing => Nothing;

    /// Check a template without keeping it
    Validate = "template.validate", Post "/templates/{name}/validate", ImageRead, Safe, Offered, (TemplateRef, NoQuery) LongJson<TemplateText> => Json<Template>;

    /// List the golden snapshots of a template
    ///
    /// Oldest first.
    Golden = "template.golden", Get "/templates/{name}/golden", SnapshotRead, Safe, Withheld, (TemplateRef, NoQuery) Nothing => Json<GoldenList>;

    /// Update the golden snapshot of a template
    ///
    /// Boots the template anew for all VMs to come.
    UpdateGolden = "template.update_golden", Post "/templates/{name}/golden/update", SnapshotCreate, Never, Withheld, (TemplateRef, NoQuery) Nothing => Json<GoldenVersion>;

    /// Roll the golden snapshot of a template back
    ///
    /// To the version before.
    RollBackGolden = "template.roll_back_golden", Post "/templates/{name}/golden/rollback", SnapshotCreate, Never, Withheld, (TemplateRef, NoQuery) Nothing => Json<GoldenVersion>;
}
