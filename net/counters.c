/* The counters themselves. See counters.h. */
#include "net/counters.h"

struct net_counters net_counters;
