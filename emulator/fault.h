// fault.h: a fault inside a kernel ends the launch, not the process.
#pragma once

namespace emu {

// Installs the signal handlers (once) and an alternate signal stack for this thread, if it has none.
void prepare_thread_for_faults();

}  // namespace emu
