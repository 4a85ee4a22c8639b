// The header and the msgpack helper of the examples are C++ too.
#include <supermachine.h>

#include "../../examples/c/mp.h"

int main() {
	sm_bytes result = {nullptr, 0};
	if (sm_version(nullptr, 0, nullptr, 0, &result) != SM_OK)
		return 1;
	bool ok = mp_get(result.data, result.len, "abi").i == sm_abi_version();
	sm_bytes_free(&result);
	return ok ? 0 : 1;
}
