/* What the appliance can tell of itself, on the console. */
#ifndef APPS_STATUS_STATUS_H
#define APPS_STATUS_STATUS_H

/* Memory, tasks, scheduler, interrupts, disks, network and server: a page of log text. */
void status_dump(void);

/* Each disk with all that there is to know of it: registers, features, limits, latencies. */
void status_dump_devices(void);

unsigned status_export_count(void);

#endif
