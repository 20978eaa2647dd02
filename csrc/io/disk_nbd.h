/* SPDX-License-Identifier: Apache-2.0 */
/* Disk operations on an NBD connection (see disk_nbd.c). */
#ifndef IO_DISK_NBD_H
#define IO_DISK_NBD_H

#include "io/io.h"

/* Carry out one operation on the socket `op->fd`, whose negotiation is over; waits for the answer. */
void disk_nbd_run(struct disk_op *op);

#endif
