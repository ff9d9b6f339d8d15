//! Contexts: interpreters that stay.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use axum::Json;
use microvm_api::context::{
    Context, ContextId, ContextList, CreateContext, ExecutionLine, LONGEST_EXECUTION,
};
use microvm_api::operation::{Created, Lines};
use microvm_api::operations::context;
use microvm_types::VmId;
use tokio::sync::mpsc;

use crate::call::Call;
use crate::contexts::{self, Beginning, Execution};
use crate::failure::Failure;
use crate::limits::{INPUT, OUTGOING};
use crate::lines::lines;
use crate::reply::{Done, Reply};
use crate::session::Session;

/// Lines that wait for a slow reader; the guest is held up by more.
const LINES: usize = 1;

pub(crate) async fn list(
    app: Session,
    Call { path: vm, .. }: Call<context::List>,
) -> Result<Json<ContextList>, Failure> {
    let found = contexts::list(&*app.guest(&vm).await?).await?;
    Ok(Json(ContextList { contexts: found.into_iter().map(|one| one.context).collect() }))
}

pub(crate) async fn create(
    app: Session,
    Call { path: vm, body, .. }: Call<context::Create>,
) -> Result<Reply<Created<Context>>, Failure> {
    let CreateContext { language, cwd, user, env } = body;
    check_variables(env.as_ref())?;
    let guest = app.guest(&vm).await?;
    // Time and chance, as ids of VMs are made. Hashers' keys are the standard library's only random numbers.
    let id = VmId::from_parts(app.engine.now_ms().unsigned_abs(), RandomState::new().build_hasher().finish());
    let id =
        ContextId::try_from(id.to_string()).map_err(|error| Failure::invalid("context_id_invalid", error))?;
    let context = Context { id, language, cwd: cwd.unwrap_or_else(|| ".".to_owned()) };
    // From here on it is in the list of contexts. Code for it has to wait: it would take it for one whose start was
    // cut off.
    let _turn = app.turns.wait(&guest, context.id.clone()).await;
    let (user, environment) = (user.unwrap_or_default(), env.unwrap_or_default());
    let running = contexts::start(&*guest, Beginning { context, user, environment }).await?;
    Ok(Reply::created(running.context))
}

pub(crate) async fn remove(
    app: Session,
    Call { path: (vm, context), .. }: Call<context::Remove>,
) -> Result<Done, Failure> {
    let guest = app.guest(&vm).await?;
    // Without a turn: code that runs in it would hold that, and is to end with it.
    contexts::end(&*guest, &contexts::find(&*guest, &context).await?).await?;
    Ok(Done)
}

pub(crate) async fn restart(
    app: Session,
    Call { path: (vm, context), .. }: Call<context::Restart>,
) -> Result<Json<Context>, Failure> {
    let guest = app.guest(&vm).await?;
    let running = contexts::find(&*guest, &context).await?;
    // Read while it lives.
    let beginning = contexts::beginning(&*guest, &running).await?;
    // What runs in it ends with it, and its turn is over.
    contexts::end(&*guest, &running).await?;
    let _turn = app.turns.wait(&guest, context.clone()).await;
    let begun = match contexts::find(&*guest, &context).await {
        // Code that waited was first, and had it started.
        Ok(other) if other.is_ready() => other,
        Ok(other) => contexts::restart(&*guest, &other).await?,
        Err(failure) if failure.0.code == "context_not_found" => contexts::start(&*guest, beginning).await?,
        Err(failure) => return Err(failure),
    };
    Ok(Json(begun.context))
}

pub(crate) async fn interrupt(
    app: Session,
    Call { path: (vm, context), .. }: Call<context::Interrupt>,
) -> Result<Done, Failure> {
    let guest = app.guest(&vm).await?;
    contexts::interrupt(&*guest, &contexts::find(&*guest, &context).await?).await?;
    Ok(Done)
}

pub(crate) async fn execute(
    app: Session,
    Call { path: vm, body: request, charge, .. }: Call<context::Execute>,
) -> Result<Reply<Lines<ExecutionLine>>, Failure> {
    let refuse = |detail: String| Err(Failure::invalid("invalid_field", detail));
    if !(1..=LONGEST_EXECUTION).contains(&request.timeout) {
        return refuse(format!(
            "timeout: {} is not possible, 1 to {LONGEST_EXECUTION} seconds are",
            request.timeout
        ));
    }
    if request.context.is_some() && request.language.is_some() {
        return refuse("language: a context has its language, give one of the two".to_owned());
    }
    check_variables(request.env.as_ref())?;
    charge.hold(OUTGOING + INPUT)?;
    let guest = app.guest(&vm).await?;
    let (sender, receiver) = mpsc::channel(LINES);
    let execution = Execution { app: app.clone(), vm, guest, charge, busy: None };
    // It ends with the server, and when nobody listens any more.
    tokio::spawn(execution.run(request, sender));
    Ok(lines(futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|line| (line, receiver))
    })))
}

/// Refuses variables that no process can have.
fn check_variables(variables: Option<&BTreeMap<String, String>>) -> Result<(), Failure> {
    let bad = |(name, value): (&String, &String)| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    };
    if variables.into_iter().flatten().any(bad) {
        let detail = "env: names are not empty and hold no `=`, and neither names nor values hold a NUL";
        return Err(Failure::invalid("invalid_field", detail.to_owned()));
    }
    Ok(())
}
