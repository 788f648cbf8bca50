/* A small libnvidia-ml.so.1: the NVML functions that the probe calls through pynvml, for the machine that the
   environment variable FAKE_NVML names. Signatures and return codes are those of NVIDIA's public nvml.h. */
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, LIB_RM_VERSION_MISMATCH = 18
};
enum { NVLINK_4_0 = 6, P2P_OK = 0, P2P_NOT_SUPPORTED = 5 };

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
typedef struct {
    unsigned multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_slices, compute_slices;
    unsigned long long memory_mib;
} Attributes;
/* parent: uuid of the GPU that a MIG instance divides. mig: -1 cannot, 0 off, 1 on. ecc: -1 cannot. watts: 0 unknown. */
typedef struct {
    const char *machine, *name, *uuid, *parent;
    unsigned total_mib, used_mib;
    int major, minor, mig, ecc;
    unsigned slices, default_watts, watts, max_mhz, default_mhz, applied_mhz, pcie, lanes, nvlinks;
} Device;

#define H100(n) {.machine = "h100x8", .name = "NVIDIA H100 80GB HBM3", .uuid = "GPU-1000000" n, .total_mib = 81559, \
    .used_mib = 7, .major = 9, .ecc = 1, .default_watts = 700, .watts = 700, .max_mhz = 1980, .default_mhz = 1980, \
    .applied_mhz = 1980, .pcie = 5, .lanes = 16, .nvlinks = 18}
#define A100_40 .name = "NVIDIA A100-SXM4-40GB", .total_mib = 40960, .major = 8, .ecc = 1

static const Device devices[] = {
    {.machine = "rtx4090", .name = "NVIDIA GeForce RTX 4090", .uuid = "GPU-40900000-aaaa", .total_mib = 24564,
     .used_mib = 2048, .major = 8, .minor = 9, .mig = -1, .ecc = -1, .default_watts = 450, .watts = 450,
     .max_mhz = 3105, .pcie = 4, .lanes = 16},
    {.machine = "gb10", .name = "NVIDIA GB10", .uuid = "GPU-10000000-aaaa", .major = 12, .minor = 1, .mig = -1,
     .ecc = -1},
    {.machine = "rtx4090-48gb", .name = "NVIDIA GeForce RTX 4090", .uuid = "GPU-40900000-bbbb", .total_mib = 49140,
     .major = 8, .minor = 9, .mig = -1, .ecc = -1},
    {.machine = "rtx3060-8gb", .name = "NVIDIA GeForce RTX 3060", .uuid = "GPU-30600000-aaaa", .total_mib = 8192,
     .major = 8, .minor = 6, .mig = -1, .ecc = -1},
    {.machine = "two", .name = "NVIDIA GeForce RTX 3090", .uuid = "GPU-30900000-aaaa", .total_mib = 24576,
     .used_mib = 576, .major = 8, .minor = 6, .mig = -1, .ecc = -1, .pcie = 4, .lanes = 16},
    {.machine = "two", .name = "NVIDIA Imaginary 9000", .uuid = "GPU-90000000-bbbb", .total_mib = 10240, .major = 7,
     .minor = 5, .mig = -1, .ecc = -1, .pcie = 3, .lanes = 8},
    {.machine = "l40", .name = "NVIDIA L40", .uuid = "GPU-40000000-aaaa", .total_mib = 46068, .major = 8, .minor = 9,
     .mig = -1, .ecc = 1},
    {.machine = "t4", .name = "Tesla T4", .uuid = "GPU-40000000-4444", .total_mib = 15360, .used_mib = 7680, .major = 7,
     .minor = 5, .mig = -1, .ecc = 1, .default_watts = 70, .watts = 60, .max_mhz = 1590, .default_mhz = 585,
     .applied_mhz = 300, .pcie = 3, .lanes = 8},
    H100("0"), H100("1"), H100("2"), H100("3"), H100("4"), H100("5"), H100("6"), H100("7"),
    {A100_40, .machine = "mig", .uuid = "GPU-10000000-aaaa", .mig = 1, .slices = 7},
    {A100_40, .machine = "mig", .uuid = "GPU-10000000-bbbb"},
    {.machine = "mig", .name = "NVIDIA A100-SXM4-40GB MIG 3g.20gb", .uuid = "MIG-33333333-aaaa",
     .parent = "GPU-10000000-aaaa", .total_mib = 20096, .used_mib = 37, .slices = 3},
    {.machine = "mig", .name = "NVIDIA A100-SXM4-40GB MIG 1g.5gb", .uuid = "MIG-11111111-aaaa",
     .parent = "GPU-10000000-aaaa", .total_mib = 4864, .used_mib = 12, .slices = 1},
    {A100_40, .machine = "mig-empty", .uuid = "GPU-10000000-aaaa", .mig = 1, .slices = 7},
    {A100_40, .machine = "mig-half-empty", .uuid = "GPU-10000000-aaaa", .mig = 1, .slices = 7},
    {A100_40, .machine = "mig-half-empty", .uuid = "GPU-10000000-bbbb"},
};

static const struct { const char *machine, *name; unsigned pid, used_mib; int graphics; } processes[] = {
    {"rtx4090", "/usr/lib/xorg/Xorg", 1001, 400, 1},
    {"t4", "/opt/conda/bin/python", 4242, 7000, 0},
    {"t4", NULL, 77, 300, 0},
};

static const char *machine(void) { const char *name = getenv("FAKE_NVML"); return name ? name : ""; }

/* parent NULL: the wanted-th whole GPU of this machine; else the wanted-th MIG instance of that GPU. */
static const Device *find(unsigned wanted, const char *parent) {
    for (unsigned i = 0; i < sizeof devices / sizeof *devices; i++) {
        const Device *device = &devices[i];
        if (strcmp(device->machine, machine()) || !device->parent != !parent) continue;
        if (parent && strcmp(device->parent, parent)) continue;
        if (wanted-- == 0) return device;
    }
    return NULL;
}
static int put(unsigned *target, unsigned value) { *target = value; return value ? SUCCESS : NOT_SUPPORTED; }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!strcmp(machine(), "no-driver")) return DRIVER_NOT_LOADED;
    if (!strcmp(machine(), "mismatch")) return LIB_RM_VERSION_MISMATCH;
    return SUCCESS;
}
int nvmlShutdown(void) { return SUCCESS; }
int nvmlSystemGetDriverVersion(char *version, unsigned length) { strncpy(version, "580.65.06", length); return SUCCESS; }
int nvmlSystemGetCudaDriverVersion(int *version) { *version = 13000; return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { for (*count = 0; find(*count, NULL); ++*count) {} return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, const Device **device) {
    *device = find(index, NULL);
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
    if (!device->total_mib) return NOT_SUPPORTED;
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
int nvmlDeviceGetMaxMigDeviceCount(const Device *device, unsigned *count) { *count = device->slices; return SUCCESS; }
int nvmlDeviceGetMigDeviceHandleByIndex(const Device *device, unsigned index, const Device **instance) {
    *instance = find(index, device->uuid);
    return *instance ? SUCCESS : NOT_FOUND;
}
int nvmlDeviceGetAttributes_v2(const Device *device, Attributes *attributes) {
    memset(attributes, 0, sizeof *attributes);
    attributes->gpu_slices = attributes->compute_slices = device->slices;
    attributes->memory_mib = device->total_mib;
    return SUCCESS;
}
static int list(unsigned *count, Process *infos, int graphics) {
    unsigned found = 0, room = *count;
    for (unsigned i = 0; i < sizeof processes / sizeof *processes; i++) {
        if (strcmp(processes[i].machine, machine()) || processes[i].graphics != graphics) continue;
        if (infos && found < room)
            infos[found] = (Process){processes[i].pid, (unsigned long long)processes[i].used_mib << 20, 0, 0};
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(const Device *device, unsigned *count, Process *infos) {
    (void)device;
    return list(count, infos, 0);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(const Device *device, unsigned *count, Process *infos) {
    (void)device;
    return list(count, infos, 1);
}
int nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length) {
    for (unsigned i = 0; i < sizeof processes / sizeof *processes; i++)
        if (processes[i].pid == pid) {
            if (!processes[i].name) return NO_PERMISSION;
            strncpy(name, processes[i].name, length);
            return SUCCESS;
        }
    return NOT_FOUND;
}
int nvmlDeviceGetEccMode(const Device *device, unsigned *current, unsigned *pending) {
    if (device->ecc < 0) return NOT_SUPPORTED;
    *current = *pending = (unsigned)device->ecc;
    return SUCCESS;
}
int nvmlDeviceGetPowerManagementDefaultLimit(const Device *device, unsigned *milliwatts) {
    return put(milliwatts, device->default_watts * 1000);
}
int nvmlDeviceGetEnforcedPowerLimit(const Device *device, unsigned *milliwatts) {
    return put(milliwatts, device->watts * 1000);
}
int nvmlDeviceGetMaxClockInfo(const Device *device, int type, unsigned *mhz) {
    return type == 1 ? put(mhz, device->max_mhz) : INVALID_ARGUMENT;
}
int nvmlDeviceGetApplicationsClock(const Device *device, int type, unsigned *mhz) {
    return type == 1 ? put(mhz, device->applied_mhz) : INVALID_ARGUMENT;
}
int nvmlDeviceGetDefaultApplicationsClock(const Device *device, int type, unsigned *mhz) {
    return type == 1 ? put(mhz, device->default_mhz) : INVALID_ARGUMENT;
}
int nvmlDeviceGetMaxPcieLinkGeneration(const Device *device, unsigned *generation) { return put(generation, device->pcie); }
int nvmlDeviceGetCurrPcieLinkWidth(const Device *device, unsigned *lanes) { return put(lanes, device->lanes); }
int nvmlDeviceGetNvLinkState(const Device *device, unsigned link, unsigned *active) {
    if (!device->nvlinks) return NOT_SUPPORTED;
    *active = link < device->nvlinks;
    return link < 18 ? SUCCESS : INVALID_ARGUMENT;
}
int nvmlDeviceGetNvLinkVersion(const Device *device, unsigned link, unsigned *version) {
    (void)link;
    return put(version, device->nvlinks ? NVLINK_4_0 : 0);
}
int nvmlDeviceGetP2PStatus(const Device *one, const Device *other, int index, int *status) {
    if (index != 2) return INVALID_ARGUMENT;
    *status = one->nvlinks && other->nvlinks ? P2P_OK : P2P_NOT_SUPPORTED;
    return SUCCESS;
}
