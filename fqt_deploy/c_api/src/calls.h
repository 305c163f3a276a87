// From which process and thread compiled code is called; runtime/calls.py says why, and does the same in Python.
#pragma once

#include <functional>

namespace fqt {

// Note that this process computes; kWrongThread in the child of a process that did so before it forked.
void EnterProcess();

// Run `action` in the thread that calls for all others; what it throws is thrown here. kWrongThread while the process
// ends.
void CallFromOneThread(const std::function<void()>& action);

}  // namespace fqt
