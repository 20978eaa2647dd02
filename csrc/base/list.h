/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Intrusive circular doubly linked list.
 * Invariants: an initialized head or node always points at valid neighbours; a node off every list points at itself,
 * so list_del of such a node is harmless.
 */
#ifndef BASE_LIST_H
#define BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list_head {
    struct list_head *next; /* following node, or the head itself at the end */
    struct list_head *prev; /* preceding node, or the head itself at the start */
};

#ifndef container_of
#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr) - offsetof(type, member)))
#endif

static inline void list_init(struct list_head *head)
{
    head->next = head;
    head->prev = head;
}

static inline bool list_empty(const struct list_head *head)
{
    return head->next == head;
}

static inline void list_insert_between(struct list_head *node, struct list_head *prev, struct list_head *next)
{
    node->prev = prev;
    node->next = next;
    prev->next = node;
    next->prev = node;
}

/* Put a node that is on no list at the front. */
static inline void list_add(struct list_head *head, struct list_head *node)
{
    list_insert_between(node, head, head->next);
}

/* Put a node that is on no list at the end. */
static inline void list_add_tail(struct list_head *head, struct list_head *node)
{
    list_insert_between(node, head->prev, head);
}

/* Take a node off its list, if it is on one, and leave it initialized. */
static inline void list_del(struct list_head *node)
{
    node->prev->next = node->next;
    node->next->prev = node->prev;
    list_init(node);
}

static inline void list_move_tail(struct list_head *head, struct list_head *node)
{
    list_del(node);
    list_add_tail(head, node);
}

/* First node, or NULL. */
static inline struct list_head *list_first(const struct list_head *head)
{
    return list_empty(head) ? NULL : head->next;
}

/* Last node, or NULL. */
static inline struct list_head *list_last(const struct list_head *head)
{
    return list_empty(head) ? NULL : head->prev;
}

/* Take the first node off, or NULL. */
static inline struct list_head *list_pop(struct list_head *head)
{
    struct list_head *node = list_first(head);
    if (node != NULL)
        list_del(node);
    return node;
}

/* Move all nodes of `from` to the end of `to`; `from` is empty afterwards. */
static inline void list_splice_tail(struct list_head *to, struct list_head *from)
{
    if (list_empty(from))
        return;
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    list_init(from);
}

#define list_entry(ptr, type, member) container_of(ptr, type, member)

/* The body must not take `pos` off its list. */
#define list_for_each(pos, head) for (struct list_head *pos = (head)->next; pos != (head); pos = pos->next)

/* The body may take `pos` (only) off its list. */
#define list_for_each_safe(pos, following, head)                                                                 \
    for (struct list_head *pos = (head)->next, *following = pos->next; pos != (head);                             \
         pos = following, following = pos->next)

#endif
