//! Pools.

use crate::operation::{Created, Json, LongJson, Nothing, PoolRef};
use crate::pool::{
    Acquire as Wish, Acquired, CreatePool, Pool, PoolList, Release as GiveBack, Released, ResizePool,
};
use crate::queries::NoQuery;

crate::rows! {
    /// List pools
    List = POOL_LIST, Get "/pools", Safe, Offered, ((), NoQuery) Nothing => Json<PoolList>;

    /// Create a pool
    ///
    /// It is filled in the background.
    Create = POOL_CREATE, Post "/pools", Never, Withheld, ((), NoQuery) LongJson<CreatePool> => Created<Pool>;

    /// Show a pool
    Get = POOL_GET, Get "/pools/{pool}", Safe, Offered, (PoolRef, NoQuery) Nothing => Json<Pool>;

    /// Remove a pool with the VMs that wait in it
    Remove = POOL_REMOVE, Delete "/pools/{pool}", Never, Withheld, (PoolRef, NoQuery) Nothing => Nothing;

    /// Change the sizes of a pool
    Resize = POOL_RESIZE, Post "/pools/{pool}/resize", Never, Withheld, (PoolRef, NoQuery) Json<ResizePool> => Json<Pool>;

    /// Acquire a VM of a pool
    ///
    /// An empty pool answers with a VM that is forked or booted; `tier` says which.
    Acquire = POOL_ACQUIRE, Post "/pools/{pool}/acquire", Never, Offered, (PoolRef, NoQuery) LongJson<Wish> => Created<Acquired>;

    /// Give a VM back to its pool
    ///
    /// It is deleted, with all that was done in it; where fewer wait than shall, a new one from the golden snapshot takes its
    /// place. What was handed out is never handed to anyone else.
    Release = POOL_RELEASE, Post "/pools/{pool}/release", Never, Offered, (PoolRef, NoQuery) Json<GiveBack> => Json<Released>;
}
