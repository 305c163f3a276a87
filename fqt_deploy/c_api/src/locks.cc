#include "locks.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "error.h"

namespace fqt {
namespace {

constexpr const char* kPart = ".part";
constexpr size_t kRandom = 8;
constexpr size_t kLongestName = 200;  // bytes of a name that a hidden one repeats
constexpr int kPatience = 200;        // times 10 ms

std::string FolderOf(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

int OpenFolder(const std::string& folder) {
  for (int i = 0; i < kPatience; ++i) {
    const int file = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (file < 0) return file;
    bool busy = false;
    if (flock(file, LOCK_SH | LOCK_NB) == 0) {
      struct stat here, there;
      if (fstat(file, &here) == 0 && stat(folder.c_str(), &there) == 0 && here.st_ino == there.st_ino) return file;
    } else if (errno == EWOULDBLOCK) {
      busy = true;
    } else {
      return file;
    }
    close(file);
    if (busy) usleep(10000);
  }
  throw Error(kCannotWrite, folder + " is being replaced by another process");
}

}  // namespace

OpenFile::~OpenFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

bool OpenFile::IsAt(const std::string& path) const {
  struct stat here, there;
  return fstat(descriptor_, &here) == 0 && lstat(path.c_str(), &there) == 0 && here.st_ino == there.st_ino &&
         here.st_dev == there.st_dev;
}

FolderLock::FolderLock(const std::string& folder) : file_(OpenFolder(folder)) {}

std::string RealPath(const std::string& path) {
  std::filesystem::path real = path;
  std::error_code error;
  for (int links = 0; links < 40 && std::filesystem::is_symlink(real, error); ++links) {
    const std::filesystem::path target = std::filesystem::read_symlink(real, error);
    if (error) break;
    real = target.is_absolute() ? target : real.parent_path() / target;
  }
  return real.string();
}

std::string HiddenPrefix(const std::string& real) {
  return "." + std::filesystem::path(real).filename().string().substr(0, kLongestName) + ".";
}

void CheckNoOtherWriter(const std::string& path) {
  const std::string real = RealPath(path);
  const std::string lock = FolderOf(real) + "/" + HiddenPrefix(real) + "lock";
  const OpenFile file(open(lock.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  if (file.descriptor() < 0 || flock(file.descriptor(), LOCK_SH | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
  char owner[21] = {};
  const ssize_t count = pread(file.descriptor(), owner, sizeof owner - 1, 0);
  throw Error(kCannotWrite, std::string("process ") + (count > 0 ? owner : "?") + " is training and writes " + path +
                                "; wait until it ends, or end it");
}

void Sweep(const std::string& path) {
  const std::string real = RealPath(path), prefix = HiddenPrefix(real), suffix = kPart;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(FolderOf(real), error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.size() != prefix.size() + kRandom + suffix.size() || name.compare(0, prefix.size(), prefix) != 0 ||
        name.compare(name.size() - suffix.size(), suffix.size(), suffix) != 0) {
      continue;
    }
    const std::string part = entry->path().string();
    const OpenFile file(open(part.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    if (file.descriptor() >= 0 && flock(file.descriptor(), LOCK_EX | LOCK_NB) == 0 && file.IsAt(part)) {
      unlink(part.c_str());
    }
  }
}

}  // namespace fqt
