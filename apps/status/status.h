/* What the appliance can tell of itself, on the console. */
#ifndef APPS_STATUS_STATUS_H
#define APPS_STATUS_STATUS_H

/* Memory, tasks, scheduler, interrupts, disks, network and server: a page of log text. */
void status_dump(void);

unsigned status_export_count(void);

#endif
