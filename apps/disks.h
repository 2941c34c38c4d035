/* The disks of the appliance: what is on them, and the exports that come of it.
 *
 * A disk is exported under its serial, a partition under its GPT name, when that is a name and
 * nobody else's; and always also by its place: vda, vda1. */
#ifndef APPS_DISKS_H
#define APPS_DISKS_H

/* Begins to ask every disk for its serial and its partition table, in tasks of their own: other
 * things can be done meanwhile. */
void disks_begin_scan(void);

/* Waits until the disks have answered, for DISK_SCAN_TIMEOUT_MS at most; what has not is exported
 * whole and by its place. Then makes the exports as the configuration wants them. Once, from a
 * task. -ENODEV when there is no disk, -ENOENT for a name in the configuration that there is not;
 * said in the log. */
int disks_export(void);

#endif
