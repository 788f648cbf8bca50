/* A small libnvidia-ml.so.1: the NVML functions that the probe calls through pynvml, for the machine that the
   environment variable FAKE_NVML names. Signatures and return codes are those of NVIDIA's public nvml.h. */
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9, LIB_RM_VERSION_MISMATCH = 18 };

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { const char *machine, *name, *uuid; unsigned total_mib, used_mib; int major, minor, mig; } Device;

static const Device devices[] = {
    {"rtx4090", "NVIDIA GeForce RTX 4090", "GPU-40900000-aaaa", 24564, 2048, 8, 9, -1},
    {"rtx4090-48gb", "NVIDIA GeForce RTX 4090", "GPU-40900000-bbbb", 49140, 0, 8, 9, -1},
    {"rtx3060-8gb", "NVIDIA GeForce RTX 3060", "GPU-30600000-aaaa", 8192, 0, 8, 6, -1},
    {"two", "NVIDIA GeForce RTX 3090", "GPU-30900000-aaaa", 24576, 576, 8, 6, -1},
    {"two", "NVIDIA Imaginary 9000", "GPU-90000000-bbbb", 10240, 0, 7, 5, -1},
    {"l40", "NVIDIA L40", "GPU-40000000-aaaa", 46068, 0, 8, 9, -1},
    {"mig", "NVIDIA A100-SXM4-40GB", "GPU-10000000-aaaa", 40960, 0, 8, 0, 1},
    {"a100", "NVIDIA A100-SXM4-40GB", "GPU-10000000-aaaa", 40960, 0, 8, 0, 0},
};

static const char *machine(void) { const char *name = getenv("FAKE_NVML"); return name ? name : ""; }

static const Device *find(unsigned wanted) {
    for (unsigned i = 0; i < sizeof devices / sizeof *devices; i++)
        if (!strcmp(devices[i].machine, machine()) && wanted-- == 0) return &devices[i];
    return NULL;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!strcmp(machine(), "no-driver")) return DRIVER_NOT_LOADED;
    if (!strcmp(machine(), "mismatch")) return LIB_RM_VERSION_MISMATCH;
    return SUCCESS;
}
int nvmlShutdown(void) { return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { for (*count = 0; find(*count); ++*count) {} return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, const Device **device) {
    *device = find(index);
    return *device ? SUCCESS : INVALID_ARGUMENT;
}
int nvmlDeviceGetName(const Device *device, char *name, unsigned length) {
    strncpy(name, device->name, length);
    return SUCCESS;
}
int nvmlDeviceGetUUID(const Device *device, char *uuid, unsigned length) {
    strncpy(uuid, device->uuid, length);
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(const Device *device, Memory *memory) {
    memory->total = (unsigned long long)device->total_mib << 20;
    memory->used = (unsigned long long)device->used_mib << 20;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}
int nvmlDeviceGetCudaComputeCapability(const Device *device, int *major, int *minor) {
    *major = device->major;
    *minor = device->minor;
    return SUCCESS;
}
int nvmlDeviceGetMigMode(const Device *device, unsigned *current, unsigned *pending) {
    if (device->mig < 0) return NOT_SUPPORTED;
    *current = *pending = (unsigned)device->mig;
    return SUCCESS;
}
