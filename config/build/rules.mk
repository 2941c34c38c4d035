# What is compiled, how, and into what. Called by build.sh from the top of the tree:
#   make -f config/build/rules.mk TARGET=riscv64 {build|selftest|deaths|unit|fuzz|sim|coverage|commands}
# Third-party sources are unpacked in build/deps before make starts (fetch.sh).

MAKEFLAGS += --no-builtin-rules --no-builtin-variables --no-print-directory
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

TARGET ?= riscv64
BUILD  := build
DEPS   := $(BUILD)/deps
OUT    := $(BUILD)/$(TARGET)
UNIT   := $(BUILD)/unit
# With COVERAGE=yes the fuzzers are built a second time, so that they tell which lines they reach.
COVERAGE ?=
FUZZ   := $(BUILD)/$(if $(COVERAGE),coverage/fuzz,fuzz)
include config/targets/$(TARGET).mk

# $(call files_below,FOLDER/,PATTERN…): every file below it that matches.
files_below = $(sort $(foreach entry,$(wildcard $1*),$(if $(wildcard $(entry)/.),\
    $(call files_below,$(entry)/,$2),$(filter $2,$(entry)))))

# --- Which sources make which product ------------------------------------------------------------

# platter.elf = COMMON + PLATTER + libraries; selftest.elf = COMMON + SELFTEST + libraries;
# deaths.elf = COMMON + DEATHS + libraries.
COMMON_SOURCES := \
    $(filter-out boot/$(TARGET)/start/%,$(call files_below,boot/$(TARGET)/,%.c %.S)) \
    $(wildcard boot/*.c) \
    $(call files_below,core/,%.c) \
    $(call files_below,net/,%.c) \
    $(call files_below,blk/,%.c) \
    $(filter-out apps/drivers.c apps/platter.c apps/selftest/% apps/deaths/%,$(call files_below,apps/,%.c))
PLATTER_SOURCES  := $(wildcard apps/platter.c apps/drivers.c)
DEATHS_SOURCES   := $(call files_below,apps/deaths/,%.c)
SELFTEST_SOURCES := apps/drivers.c $(call files_below,apps/selftest/,%.c) $(call files_below,tests/guest/,%.c)

# start.bin: the machine-mode start that takes the firmware's place.
START_SOURCES := $(wildcard boot/$(TARGET)/start/*.S)

# Unit tests: each tests/unit/test_NAME.c is a program, linked with libplatter-host.a, which holds
# what runs on the development machine, lwIP included, and with what it uses of the helpers beside it.
# HOST_EXCLUDE (patterns) keeps out what cannot: files that need a board, or the link script's symbols.
UNIT_TESTS   := $(wildcard tests/unit/test_*.c)
UNIT_HELPERS := $(filter-out $(UNIT_TESTS),$(wildcard tests/unit/*.c)) tests/device_ring.c
HOST_EXCLUDE := core/mem/malloc.c core/start.c core/stack_guard.c
HOST_SOURCES := $(filter-out $(HOST_EXCLUDE), \
    $(call files_below,core/,%.c) \
    $(call files_below,blk/,%.c) \
    $(wildcard net/*.c apps/nbd/*.c) \
    $(call files_below,boot/host/,%.c))

# Fuzzers: each tests/fuzz/fuzz_NAME.c is a program, linked with what it needs of the same sources. A
# target may bring a network of its own: what it defines itself is not taken from the library.
FUZZ_TARGETS := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_HELPERS := $(filter-out $(FUZZ_TARGETS),$(wildcard tests/fuzz/*.c)) tests/device_ring.c
FUZZ_SOURCES := $(HOST_SOURCES)

# What neither of them links counts too when the lines are counted: as never reached.
COVERAGE_SOURCES := $(filter-out $(FUZZ_SOURCES) apps/selftest/% apps/deaths/%,\
    $(foreach folder,core/ net/ blk/ apps/,$(call files_below,$(folder),%.c)))

# The simulator: the appliance as it is, but for the board and the C library, with tests/sim around it.
# SIM_KIND: `safe` with the sanitizers, `fast` to explore with, `coverage` to see what it reaches.
SIM_KIND ?= safe
SIM := $(BUILD)/sim/$(SIM_KIND)
SIM_EXCLUDE := core/lib/mem_%.c core/stack_guard.c apps/drivers.c apps/selftest/% apps/deaths/%
SIM_APPLIANCE := $(filter-out $(SIM_EXCLUDE), \
    $(call files_below,core/,%.c) \
    $(call files_below,net/,%.c) \
    $(call files_below,blk/,%.c) \
    $(call files_below,apps/,%.c))
SIM_OUTSIDE := boot/host/arch.c $(call files_below,tests/sim/,%.c)

# Third party, from the unpacked trees.
LWIP_SOURCES := $(wildcard $(DEPS)/lwip/src/core/*.c $(DEPS)/lwip/src/core/ipv4/*.c \
    $(DEPS)/lwip/src/core/ipv6/*.c) $(DEPS)/lwip/src/netif/ethernet.c
LIBFDT_SOURCES := $(filter-out %/fdt_overlay.c,$(wildcard $(DEPS)/libfdt/libfdt/*.c))
PICOLIBC := $(DEPS)/$(TARGET)/picolibc
LIBC     := $(PICOLIBC)/lib/libc.a

# --- How ------------------------------------------------------------------------------------------

CLANG   := clang-14
LD      := ld.lld-16
AR      := llvm-ar-14
OBJCOPY := llvm-objcopy-14
SIZE    := llvm-size-14
STRIP_FLAGS := --strip-all

# Stack bytes that one function may take: the smallest stack holds eight of them. The build fails
# above it.
FRAME_BYTES_MAX := 2048

# The same tree gives the same bits in any folder.
PREFIX_MAP := -ffile-prefix-map=$(CURDIR)=.

WARNINGS := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wundef -Wvla

# Not -ffreestanding: clang 14 then treats memcpy and friends as unknown functions and calls them
# even for 8 bytes. The libc that hosted code may expect is there: picolibc.
# Optimised across files when it is linked: most of what a packet passes through is small functions.
TARGET_CODE := $(TARGET_FLAGS) -O2 -flto -g $(PREFIX_MAP) -ffunction-sections -fdata-sections \
    -fomit-frame-pointer -funwind-tables -fno-asynchronous-unwind-tables \
    -fno-common -nostdlibinc -fstack-protector-strong \
    -Werror=frame-larger-than -Wframe-larger-than=$(FRAME_BYTES_MAX)

# Ours say "core/mem/heap.h". config/ is searched for quoted names only (lwIP asks for "lwipopts.h"),
# or <limits.h> would find config/limits.h.
OUR_INCLUDES := -I. -Inet/port -iquote config
LIBRARY_INCLUDES := -isystem $(DEPS)/lwip/src/include -isystem $(DEPS)/libfdt/libfdt
LIBC_INCLUDES := -isystem $(PICOLIBC)/include

FLAGS_OURS  := $(TARGET_CODE) -std=c17 -D_DEFAULT_SOURCE $(WARNINGS) $(OUR_INCLUDES) $(LIBRARY_INCLUDES) $(LIBC_INCLUDES)
FLAGS_ASM   := $(TARGET_CODE) -I.
FLAGS_THIRD := $(TARGET_CODE) -std=gnu17 -Wall -Wno-unused $(OUR_INCLUDES) $(LIBRARY_INCLUDES) $(LIBC_INCLUDES)

# Our memcpy and its kind must not be compiled into calls of themselves.
FLAGS_MEM := -fno-builtin

LINK_SCRIPT := boot/$(TARGET)/kernel.ld
# A call costs an emulator two looks for the translated code of where it goes, so larger functions than
# usual are inlined: 5 % fewer instructions for 30 KB. Variables share the register that addresses them, and
# addresses are not kept in registers across loops that seldom turn, which every call would have to save: 6 %.
LINK_FLAGS  := $(TARGET_LDFLAGS) -O2 --lto-O2 \
    $(foreach option,-inline-threshold=500 -riscv-enable-global-merge -disable-machine-licm \
        -force-dwarf-frame-section,-mllvm $(option)) \
    -static --gc-sections --fatal-warnings --build-id=none

HOST_SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all
HOST_COVERAGE := -fprofile-instr-generate -fcoverage-mapping
# lwIP on this machine. Its test mode lets its timers be forgotten, for another life in one process.
LWIP_HOST := -DLWIP_TESTMODE=1 -I. -Inet/port -iquote config -isystem $(DEPS)/lwip/src/include
FLAGS_HOST := -std=c17 -D_DEFAULT_SOURCE -DPLATTER_HOST -g -O1 -fno-omit-frame-pointer $(PREFIX_MAP) $(WARNINGS) \
    $(HOST_SANITIZE) $(HOST_COVERAGE) $(LWIP_HOST) -isystem $(DEPS)/libfdt/libfdt
# Our calls of these pass through tests/unit/unit.c, which can let them fail.
HOST_WRAP := $(foreach name,malloc calloc aligned_alloc,-Wl,--wrap=$(name))
FLAGS_HOST_THIRD := -std=gnu17 -g -O1 -w $(HOST_SANITIZE) $(LWIP_HOST) -isystem $(DEPS)/libfdt/libfdt

# The fuzzers are told by the compiler which branches an input has taken.
FLAGS_FUZZ := $(filter-out $(if $(COVERAGE),,$(HOST_COVERAGE)),$(FLAGS_HOST)) -fsanitize=fuzzer-no-link
FLAGS_FUZZ_THIRD := $(FLAGS_HOST_THIRD) -fsanitize=fuzzer-no-link

# On the host, our mem* functions take other names, so that a test can compare them with libc's.
FLAGS_HOST_MEM := -fno-builtin $(foreach name,memcpy memmove memset memcmp,-D$(name)=platter_$(name))

# The appliance's heap is its own; the simulator's is the C library's. So that a run is the same each
# time, the program lies at a fixed address.
SIM_HEAP := $(foreach name,malloc calloc realloc free aligned_alloc,-D$(name)=appliance_$(name))
SIM_WRAP := $(foreach name,heap_alloc heap_alloc_zeroed heap_alloc_aligned heap_free memp_malloc,-Wl,--wrap=$(name))
SIM_FLAGS_safe     := -O1 $(HOST_SANITIZE)
SIM_FLAGS_fast     := -O2
SIM_FLAGS_coverage := -O1 $(HOST_COVERAGE)
SIM_CODE := -D_DEFAULT_SOURCE -g -fno-omit-frame-pointer -fno-pie $(PREFIX_MAP) $(SIM_FLAGS_$(SIM_KIND)) \
    $(OUR_INCLUDES) $(LIBRARY_INCLUDES)
FLAGS_SIM := -std=c17 $(WARNINGS) $(SIM_CODE)
FLAGS_SIM_THIRD := -std=gnu17 -w $(SIM_CODE)

# --- A change of flags or of a list is a change of a file -----------------------------------------

KEYS := $(OUT)/keys
ifeq ($(wildcard $(KEYS)/.),)
$(shell mkdir -p $(KEYS))
endif

# $(call key,NAME,TEXT): build/TARGET/keys/NAME holds TEXT; it is written only when that is news.
differs = $(subst [$(strip $1)],,[$(strip $2)])
key = $(if $(call differs,$(file <$(KEYS)/$1),$1: $2),$(file >$(KEYS)/$1,$1: $(strip $2)))

# --- Objects --------------------------------------------------------------------------------------

object  = $(patsubst %,$(OUT)/obj/%.o,$(patsubst $(DEPS)/%,deps/%,$1))
hosted  = $(patsubst %,$(UNIT)/obj/%.o,$(patsubst $(DEPS)/%,deps/%,$1))

COMMON_OBJECTS   := $(call object,$(COMMON_SOURCES))
PLATTER_OBJECTS  := $(call object,$(PLATTER_SOURCES))
SELFTEST_OBJECTS := $(call object,$(SELFTEST_SOURCES))
DEATHS_OBJECTS   := $(call object,$(DEATHS_SOURCES))
LIBRARY_OBJECTS  := $(call object,$(LWIP_SOURCES) $(LIBFDT_SOURCES))
START_OBJECTS    := $(call object,$(START_SOURCES))

fuzzed  = $(patsubst %,$(FUZZ)/obj/%.o,$(patsubst $(DEPS)/%,deps/%,$1))

simulated = $(patsubst %,$(SIM)/obj/%.o,$(patsubst $(DEPS)/%,deps/%,$1))
SIM_APPLIANCE_OBJECTS := $(call simulated,$(SIM_APPLIANCE))
SIM_OUTSIDE_OBJECTS   := $(call simulated,$(SIM_OUTSIDE))
SIM_LIBRARY_OBJECTS   := $(call simulated,$(LWIP_SOURCES) $(LIBFDT_SOURCES))

HOST_OBJECTS   := $(call hosted,$(HOST_SOURCES) $(LIBFDT_SOURCES) $(LWIP_SOURCES))
HELPER_OBJECTS := $(call hosted,$(UNIT_HELPERS))
TEST_OBJECTS   := $(call hosted,$(UNIT_TESTS))
FUZZ_OBJECTS   := $(call fuzzed,$(FUZZ_SOURCES) $(LIBFDT_SOURCES) $(LWIP_SOURCES) $(FUZZ_HELPERS))
FUZZ_TARGET_OBJECTS := $(call fuzzed,$(FUZZ_TARGETS))
COVERAGE_OBJECTS := $(call fuzzed,$(COVERAGE_SOURCES))
FUZZ_PROGRAMS  := $(patsubst tests/fuzz/fuzz_%.c,$(FUZZ)/%,$(FUZZ_TARGETS))
TEST_PROGRAMS  := $(patsubst tests/unit/%.c,$(UNIT)/%,$(UNIT_TESTS))

PICOLIBC_KEY := $(notdir $(wildcard $(DEPS)/picolibc/.unpacked-*)) $(TARGET_CPU_FAMILY) $(TARGET_FLAGS)

$(call key,ours,$(FLAGS_OURS) $(FLAGS_MEM))
$(call key,asm,$(FLAGS_ASM))
$(call key,third,$(FLAGS_THIRD))
$(call key,host,$(FLAGS_HOST) $(FLAGS_HOST_MEM))
$(call key,host-third,$(FLAGS_HOST_THIRD))
FUZZ_KEY := fuzz$(if $(COVERAGE),-coverage)
$(call key,$(FUZZ_KEY),$(FLAGS_FUZZ) $(FLAGS_HOST_MEM))
$(call key,$(FUZZ_KEY)-third,$(FLAGS_FUZZ_THIRD))
$(call key,$(FUZZ_KEY)-objects,$(FUZZ_OBJECTS))
$(call key,sim-$(SIM_KIND),$(FLAGS_SIM) $(SIM_HEAP) $(SIM_WRAP) $(FLAGS_SIM_THIRD))
$(call key,sim-objects-$(SIM_KIND),$(SIM_APPLIANCE_OBJECTS) $(SIM_OUTSIDE_OBJECTS) $(SIM_LIBRARY_OBJECTS))
$(call key,picolibc,$(PICOLIBC_KEY))
$(call key,platter,$(LINK_FLAGS) $(STRIP_FLAGS) $(COMMON_OBJECTS) $(PLATTER_OBJECTS) $(LIBRARY_OBJECTS))
$(call key,selftest,$(LINK_FLAGS) $(STRIP_FLAGS) $(COMMON_OBJECTS) $(SELFTEST_OBJECTS) $(LIBRARY_OBJECTS))
$(call key,deaths,$(LINK_FLAGS) $(STRIP_FLAGS) $(COMMON_OBJECTS) $(DEATHS_OBJECTS) $(LIBRARY_OBJECTS))
$(call key,start,$(TARGET_LDFLAGS) $(START_OBJECTS))
$(call key,host-objects,$(HOST_OBJECTS))
$(call key,helpers,$(HELPER_OBJECTS))

# Every object leaves a .d (what it was made of) and a .json (how: a line of compile_commands.json).
DEPEND = -MD -MP -MJ $(@:.o=.json)
QUIET  = @mkdir -p $(@D) && echo "  $1  $<" &&

$(OUT)/obj/core/lib/mem_%.c.o: core/lib/mem_%.c $(KEYS)/ours $(LIBC)
	$(call QUIET,CC   )$(CLANG) $(FLAGS_OURS) $(FLAGS_MEM) $(DEPEND) -c $< -o $@

$(OUT)/obj/%.c.o: %.c $(KEYS)/ours $(LIBC)
	$(call QUIET,CC   )$(CLANG) $(FLAGS_OURS) $(DEPEND) -c $< -o $@

$(OUT)/obj/%.S.o: %.S $(KEYS)/asm
	$(call QUIET,AS   )$(CLANG) $(FLAGS_ASM) $(DEPEND) -c $< -o $@

$(OUT)/obj/deps/%.c.o: $(DEPS)/%.c $(KEYS)/third $(LIBC)
	$(call QUIET,CC 3p)$(CLANG) $(FLAGS_THIRD) -MD -MP -c $< -o $@

$(UNIT)/obj/core/lib/mem_%.c.o: core/lib/mem_%.c $(KEYS)/host
	$(call QUIET,HOST )$(CLANG) $(FLAGS_HOST) $(FLAGS_HOST_MEM) $(DEPEND) -c $< -o $@

$(UNIT)/obj/%.c.o: %.c $(KEYS)/host
	$(call QUIET,HOST )$(CLANG) $(FLAGS_HOST) $(DEPEND) -c $< -o $@

$(UNIT)/obj/deps/%.c.o: $(DEPS)/%.c $(KEYS)/host-third
	$(call QUIET,HOST )$(CLANG) $(FLAGS_HOST_THIRD) -MD -MP -c $< -o $@

$(FUZZ)/obj/core/lib/mem_%.c.o: core/lib/mem_%.c $(KEYS)/$(FUZZ_KEY)
	$(call QUIET,FUZZ )$(CLANG) $(FLAGS_FUZZ) $(FLAGS_HOST_MEM) $(DEPEND) -c $< -o $@

$(FUZZ)/obj/%.c.o: %.c $(KEYS)/$(FUZZ_KEY)
	$(call QUIET,FUZZ )$(CLANG) $(FLAGS_FUZZ) $(DEPEND) -c $< -o $@

$(FUZZ)/obj/deps/%.c.o: $(DEPS)/%.c $(KEYS)/$(FUZZ_KEY)-third
	$(call QUIET,FUZZ )$(CLANG) $(FLAGS_FUZZ_THIRD) -MD -MP -c $< -o $@

$(SIM)/obj/tests/%.c.o: tests/%.c $(KEYS)/sim-$(SIM_KIND)
	$(call QUIET,SIM  )$(CLANG) $(FLAGS_SIM) $(DEPEND) -c $< -o $@

$(SIM)/obj/boot/%.c.o: boot/%.c $(KEYS)/sim-$(SIM_KIND)
	$(call QUIET,SIM  )$(CLANG) $(FLAGS_SIM) $(DEPEND) -c $< -o $@

$(SIM)/obj/deps/%.c.o: $(DEPS)/%.c $(KEYS)/sim-$(SIM_KIND)
	$(call QUIET,SIM  )$(CLANG) $(FLAGS_SIM_THIRD) $(SIM_HEAP) -MD -MP -c $< -o $@

$(SIM)/obj/%.c.o: %.c $(KEYS)/sim-$(SIM_KIND)
	$(call QUIET,SIM  )$(CLANG) $(FLAGS_SIM) $(SIM_HEAP) $(DEPEND) -c $< -o $@

# Lists of what each object depends on; a missing one is simply not there yet.
ALL_OBJECTS := $(COMMON_OBJECTS) $(PLATTER_OBJECTS) $(SELFTEST_OBJECTS) $(DEATHS_OBJECTS) $(LIBRARY_OBJECTS) \
    $(START_OBJECTS) $(HOST_OBJECTS) $(HELPER_OBJECTS) $(TEST_OBJECTS) $(FUZZ_OBJECTS) $(FUZZ_TARGET_OBJECTS) \
    $(COVERAGE_OBJECTS) $(SIM_APPLIANCE_OBJECTS) $(SIM_OUTSIDE_OBJECTS) $(SIM_LIBRARY_OBJECTS)
-include $(wildcard $(ALL_OBJECTS:.o=.d))

# --- Products -------------------------------------------------------------------------------------

.PHONY: build selftest deaths unit fuzz sim coverage commands

build: $(OUT)/platter.elf $(OUT)/start.bin $(BUILD)/compile_commands.json
selftest: $(OUT)/selftest.elf $(OUT)/start.bin
deaths: $(OUT)/deaths.elf $(OUT)/start.bin
unit: $(TEST_PROGRAMS)
fuzz: $(FUZZ_PROGRAMS)
coverage: $(FUZZ_PROGRAMS) $(COVERAGE_OBJECTS)
sim: $(SIM)/sim

# Leaves the objects that lint needs the commands of.
commands: $(COMMON_OBJECTS) $(PLATTER_OBJECTS) $(SELFTEST_OBJECTS) $(DEATHS_OBJECTS) $(TEST_OBJECTS) \
    $(HELPER_OBJECTS) $(UNIT)/libplatter-host.a $(FUZZ_OBJECTS) $(FUZZ_TARGET_OBJECTS) $(SIM_OUTSIDE_OBJECTS) \
    $(BUILD)/compile_commands.json

$(LIBC): $(KEYS)/picolibc config/build/picolibc.sh config/targets/picolibc-cross.txt.in
	@config/build/picolibc.sh $(DEPS)/picolibc $(PICOLIBC) $(TARGET_CPU_FAMILY) $(TARGET_FLAGS)

# The ELF with symbols is for debuggers; QEMU loads the stripped one.
$(OUT)/platter.debug.elf: $(COMMON_OBJECTS) $(PLATTER_OBJECTS) $(KEYS)/platter
$(OUT)/selftest.debug.elf: $(COMMON_OBJECTS) $(SELFTEST_OBJECTS) $(KEYS)/selftest
$(OUT)/deaths.debug.elf: $(COMMON_OBJECTS) $(DEATHS_OBJECTS) $(KEYS)/deaths
$(OUT)/platter.debug.elf $(OUT)/selftest.debug.elf $(OUT)/deaths.debug.elf: $(LIBRARY_OBJECTS) $(LIBC) $(LINK_SCRIPT) config/build/symbols.sh config/build/link.sh
	@echo "  LINK   $@"
	@config/build/link.sh $@ $(LINK_SCRIPT) "$(CLANG) $(TARGET_FLAGS)" \
	    $(LD) $(LINK_FLAGS) $(filter %.o,$^) $(LIBC)

$(OUT)/%.elf: $(OUT)/%.debug.elf
	@$(OBJCOPY) $(STRIP_FLAGS) $< $@

$(OUT)/start.elf: $(START_OBJECTS) boot/$(TARGET)/start/start.ld $(KEYS)/start
	@echo "  LINK   $@"
	@$(LD) $(TARGET_LDFLAGS) -static -T boot/$(TARGET)/start/start.ld -o $@ $(START_OBJECTS)

$(OUT)/start.bin: $(OUT)/start.elf
	@$(OBJCOPY) -O binary $< $@

$(UNIT)/libplatter-host.a: $(HOST_OBJECTS) $(KEYS)/host-objects
	@rm -f $@
	@$(AR) rcs $@ $(HOST_OBJECTS)

$(UNIT)/libhelpers.a: $(HELPER_OBJECTS) $(KEYS)/helpers
	@rm -f $@
	@$(AR) rcs $@ $(HELPER_OBJECTS)

$(UNIT)/test_%: $(UNIT)/obj/tests/unit/test_%.c.o $(UNIT)/libhelpers.a $(UNIT)/libplatter-host.a
	@echo "  LINK   $@"
	@$(CLANG) $(HOST_SANITIZE) $(HOST_COVERAGE) $(HOST_WRAP) -o $@ $< $(UNIT)/libhelpers.a \
	    $(UNIT)/libplatter-host.a -lcmocka -lpthread

$(FUZZ)/libplatter-fuzz.a: $(FUZZ_OBJECTS) $(KEYS)/$(FUZZ_KEY)-objects
	@rm -f $@
	@$(AR) rcs $@ $(FUZZ_OBJECTS)

$(FUZZ)/%: $(FUZZ)/obj/tests/fuzz/fuzz_%.c.o $(FUZZ)/libplatter-fuzz.a
	@echo "  LINK   $@"
	@$(CLANG) $(HOST_SANITIZE) $(if $(COVERAGE),$(HOST_COVERAGE)) -fsanitize=fuzzer -o $@ $< $(FUZZ)/libplatter-fuzz.a

$(SIM)/sim: $(SIM_APPLIANCE_OBJECTS) $(SIM_OUTSIDE_OBJECTS) $(SIM_LIBRARY_OBJECTS) $(KEYS)/sim-objects-$(SIM_KIND)
	@echo "  LINK   $@"
	@$(CLANG) $(SIM_FLAGS_$(SIM_KIND)) -no-pie $(SIM_WRAP) -o $@ $(filter %.o,$^)

# One entry for each of our own files: as it is compiled for the target, else as for the host.
COMMANDS := $(COMMON_OBJECTS) $(PLATTER_OBJECTS) $(SELFTEST_OBJECTS) $(DEATHS_OBJECTS) $(HELPER_OBJECTS) $(TEST_OBJECTS) \
    $(filter $(UNIT)/obj/boot/host/%,$(HOST_OBJECTS)) $(filter $(FUZZ)/obj/tests/%,$(FUZZ_OBJECTS)) $(FUZZ_TARGET_OBJECTS) \
    $(filter $(SIM)/obj/tests/%,$(SIM_OUTSIDE_OBJECTS))

$(BUILD)/compile_commands.json: $(COMMON_OBJECTS) $(PLATTER_OBJECTS) $(wildcard $(COMMANDS))
	@{ echo '['; cat $(wildcard $(COMMANDS:.o=.json)) /dev/null | sed '$$s/,$$//'; echo ']'; } >$@

# Objects are intermediate to make's eyes; they must stay.
.SECONDARY:
