//! Pools.

use crate::operation::{Created, Json, LongJson, Nothing, PoolRef};
use crate::pool::{
    Acquire as Wish, Acquired, CreatePool, Pool, PoolList, Release as GiveBack, Released, ResizePool,
};
use crate::queries::NoQuery;

crate::rows! {
    /// List pools
    List = "pool.list", Get "/pools", VmRead, Safe, Offered, ((), NoQuery) Nothing => Json<PoolList>;

    /// Create a pool
    ///
    /// It is filled in the background.
    Create = "pool.create", Post "/pools", VmCreate, Never, Withheld, ((), NoQuery) LongJson<CreatePool> => Created<Pool>;

    /// Show a pool
    Get = "pool.get", Get "/pools/{pool}", VmRead, Safe, Offered, (PoolRef, NoQuery) Nothing => Json<Pool>;

    /// Remove a pool with the VMs that wait in it
    Remove = "pool.remove", Delete "/pools/{pool}", VmDelete, Never, Withheld, (PoolRef, NoQuery) Nothing => Nothing;

    /// Change the sizes of a pool
    Resize = "pool.resize", Post "/pools/{pool}/resize", VmOperate, Never, Withheld, (PoolRef, NoQuery) Json<ResizePool> => Json<Pool>;

    /// Acquire a VM of a pool
    ///
    /// An empty pool answers with a VM that is forked or booted; `tier` says which.
    Acquire = "pool.acquire", Post "/pools/{pool}/acquire", VmCreate, Never, Offered, (PoolRef, NoQuery) LongJson<Wish> => Created<Acquired>;

    /// Give a VM back to its pool
    ///
    /// It is deleted, with all that was done in it; where fewer wait than shall, a new one from the golden snapshot takes its
    /// place. What was handed out is never handed to anyone else.
    Release = "pool.release", Post "/pools/{pool}/release", VmDelete, Never, Offered, (PoolRef, NoQuery) Json<GiveBack> => Json<Released>;
}
