/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Result codes of every function of the engine that can fail.
 * Invariant: RE_OK is 0 and the others are positive and stable, since they are handed across the library boundary.
 */
#ifndef BASE_STATUS_H
#define BASE_STATUS_H

enum re_status {
    RE_OK = 0,         /* done */
    RE_AGAIN = 1,      /* not now: retry after some progress elsewhere */
    RE_EOF = 2,        /* orderly end of the stream */
    RE_RESET = 3,      /* the other side broke the stream */
    RE_EIO = 4,        /* the device reported an error */
    RE_ENOSPC = 5,     /* no room */
    RE_EINVAL = 6,     /* an argument is out of its domain */
    RE_ENOMEM = 7,     /* allocation failed */
    RE_EPROTO = 8,     /* the peer broke the protocol */
    RE_ERANGE = 9,     /* beyond the end of the device or of the representable range */
    RE_ECORRUPT = 10,  /* stored data failed its own check */
    RE_EPERM = 11,     /* not allowed in this state */
    RE_ETIMEOUT = 12,  /* the deadline passed */
    RE_ECANCELED = 13, /* given up on request */
    RE_ENOTSUP = 14,   /* known but not implemented or not negotiated */
    RE_ESHUTDOWN = 15, /* the object is being closed */
};

/* The name of a status for messages; never NULL. */
static inline const char *re_status_name(enum re_status status)
{
    switch (status) {
    case RE_OK: return "ok";
    case RE_AGAIN: return "again";
    case RE_EOF: return "end of stream";
    case RE_RESET: return "connection reset";
    case RE_EIO: return "I/O error";
    case RE_ENOSPC: return "no space";
    case RE_EINVAL: return "invalid argument";
    case RE_ENOMEM: return "out of memory";
    case RE_EPROTO: return "protocol error";
    case RE_ERANGE: return "out of range";
    case RE_ECORRUPT: return "corrupt data";
    case RE_EPERM: return "not permitted";
    case RE_ETIMEOUT: return "timed out";
    case RE_ECANCELED: return "canceled";
    case RE_ENOTSUP: return "not supported";
    case RE_ESHUTDOWN: return "shutting down";
    }
    return "unknown status";
}

#endif
